"""Measures how fast a model file runs on this machine, in a process with only its runtime."""

from simulations.bench.speed.layers import Layer, layers, time_by_kind
from simulations.bench.speed.measure import Job, Measured, Runtime, Timing, run_file
from simulations.bench.speed.profile import Profile, profile_model

__all__ = [
    "Job",
    "Layer",
    "Measured",
    "Profile",
    "Runtime",
    "Timing",
    "layers",
    "profile_model",
    "run_file",
    "time_by_kind",
]
