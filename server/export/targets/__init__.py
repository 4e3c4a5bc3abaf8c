"""What a run can be exported as: a small module for each runtime."""
