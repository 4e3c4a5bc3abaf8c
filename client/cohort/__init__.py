"""Many simulated clients' training at once, equal to one after another up to rounding."""
