"""What runs on the server: the round loop, the strategies, evaluation, checkpoints, export."""
