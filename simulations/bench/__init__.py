"""Benchmarks against what a user would take instead; each runner is a process of its own."""
