"""The export targets: a small module for each runtime."""
