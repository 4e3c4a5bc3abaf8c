"""A grid of runs, strategies by partitions by seeds, each strategy at its own best settings."""
