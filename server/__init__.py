"""The server: the round loop, the strategies, evaluation, checkpoints, export."""
