"""Runs to compare: strategies by partitions by seeds, each strategy at its own best settings."""
