"""Does training the head alone suffice for these images? Asked before anything is deployed."""

from simulations.probe.measure import Probe, probe_data
from simulations.probe.plot import draw
from simulations.probe.verdict import Verdict, judge

__all__ = ["Probe", "Verdict", "draw", "judge", "probe_data"]
