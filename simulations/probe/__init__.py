"""Estimates, before a deployment, what accuracy a head alone can reach on some images."""

from simulations.probe.images import probe_images
from simulations.probe.measure import Probe, probe_data
from simulations.probe.options import compare_options
from simulations.probe.plot import draw
from simulations.probe.verdict import Verdict, judge

__all__ = [
    "Probe",
    "Verdict",
    "compare_options",
    "draw",
    "judge",
    "probe_data",
    "probe_images",
]
