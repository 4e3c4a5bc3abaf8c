"""Differential privacy as pure functions: what it costs, how much noise, and whole-number noise.

Nothing here knows strategies, messages or rounds. The unit is one client, and two data sets are
neighbours if one has one client more than the other. ``docs/privacy.md`` says what is protected.
"""
