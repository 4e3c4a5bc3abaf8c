"""The records of a run: its folder, checkpoints, events, figures and progress."""
