"""Training of many simulated clients at once. The result is that of one by one, up to rounding."""
