"""What can be read out of a run's messages and heads, tried on the run itself."""
