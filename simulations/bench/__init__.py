"""Benchmarks against alternatives to fedhead; each runner is a process of its own."""
