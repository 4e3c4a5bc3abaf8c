"""The Python API, room by room; ``import fedhead`` offers what a user needs of it."""
