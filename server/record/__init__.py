"""What a run leaves behind and tells while it lasts: its folder, checkpoints, events, figures."""
