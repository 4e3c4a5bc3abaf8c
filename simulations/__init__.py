"""Simulation on one machine, comparison, and the command line."""
