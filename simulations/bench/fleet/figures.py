"""The figures of a simulated fleet, from what its phones, its gateway and its run have counted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from simulations.bench.fleet.profile import Profile
from simulations.bench.fleet.watch import Watch

__all__ = ["awake_seconds", "fleet_figures", "spread", "steadiness"]

_PHASES = ("waiting", "fetching", "training", "uploading")


def spread(per_second: Sequence[int]) -> dict[str, float]:
    """How evenly calls are spread over seconds.

    If each call came at a random moment, whatever the others do, counts would be Poisson's, and
    their variance their mean. Phones that call together make it larger, and phones that each come
    once in a window smaller.

    Args:
        per_second: calls in each second.

    Returns:
        Their mean, the largest over the mean, the variance over the mean, and the probability that
        random moments are no more even than these, by Pearson's chi-square test.
    """
    counts = np.array(per_second, np.float64)
    mean = float(counts.mean()) if len(counts) else 0.0
    if len(counts) < 2 or not mean:
        return {"per_second": mean, "max_over_mean": 0.0, "variance_over_mean": 0.0, "p": 1.0}
    statistic = float(((counts - mean) ** 2).sum() / mean)
    freedom = len(counts) - 1
    return {
        "per_second": mean,
        "max_over_mean": float(counts.max()) / mean,
        "variance_over_mean": statistic / freedom,
        "p": _upper_tail(statistic, freedom),
    }


def _upper_tail(statistic: float, freedom: int) -> float:
    """The probability that a chi-square variable is larger, after Wilson and Hilferty (1931)."""
    spread = 2 / (9 * freedom)
    z = ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
    return math.erfc(z / math.sqrt(2)) / 2


def steadiness(moments: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """A quantity over time: its ends, its peak and its growth in the second half.

    Args:
        moments: seconds.
        values: at these moments, at least one.
    """
    half = len(values) // 2
    growth = 0.0
    if len(values) - half > 2:
        growth = float(np.polyfit(moments[half:], values[half:], 1)[0]) * 60
    return {
        "first": float(values[0]),
        "peak": float(max(values)),
        "last": float(values[-1]),
        "growth_per_minute": growth,
    }


def awake_seconds(profile: Profile, zone: int, seconds: float) -> float:
    """For how many of the fleet's seconds a zone's phones are there."""
    moments = (np.arange(1000) + 0.5) / 1000 * seconds
    own = profile.zones[zone]
    there = [profile.seconds_until_awake(own, 0.0, t) == 0 for t in moments.tolist()]
    return float(np.mean(there)) * seconds


def fleet_figures(
    crowd: Mapping[str, Any],
    gateway: Mapping[str, Any],
    watch: Watch,
    summary: Mapping[str, Any],
    profile: Profile,
    *,
    steady: tuple[float, float],
) -> dict[str, Any]:
    """Everything that ``fedhead fleet-simulate`` tells, as JSON.

    Args:
        crowd: the phones' ``Tally.figures``.
        gateway: its fleet.json.
        watch: of the service.
        summary: the run's.
        profile: when phones are there.
        steady: seconds of the crowd's clock between which its calls are counted: the phones'
            first calls are over, and the last round is not. After it all phones evaluate at once.
    """
    begins, ends = (math.ceil(moment) for moment in steady)
    arrivals = crowd["arrivals_per_second"][begins:ends]
    lasted = summary["seconds"]["rounds_total"] or 1.0
    busiest = max(crowd["accepted_per_second"], default=0)
    moved = crowd["up_bytes"] + crowd["down_bytes"]
    return {
        "phones": sum(zone["phones"] for zone in crowd["zones"]),
        "rounds": summary["rounds"],
        "accepted_rounds": summary["accepted_rounds"],
        "round_seconds": lasted / max(summary["rounds"], 1),
        "accuracy": summary["accuracy"],
        "head_sha256": summary["head_sha256"],
        "clients": summary["clients"],
        "valid_updates": summary["valid_updates"],
        "test_clients": (summary["client_tests"] or {}).get("clients", 0),
        "verdicts": crowd["verdicts"],
        "faults": crowd["given"],
        "counters": gateway.get("counters", {}),
        "calls": crowd["calls"],
        "failed_calls": crowd["failed"],
        "check_ins": spread(arrivals),
        "check_in_seconds": crowd["check_in_seconds"],
        "submit_seconds": crowd["submit_seconds"],
        "most_uploads_per_second": busiest,
        "megabytes": moved / 1e6,
        "megabytes_per_second": moved / 1e6 / crowd["seconds"],
        "most_open_check_ins": crowd["most_open_check_ins"],
        "phases": _phases(gateway),
        "resident_megabytes": steadiness(watch.moments, [m / 1e6 for m in watch.resident]),
        "descriptors": steadiness(watch.moments, watch.descriptors),
        "service_cpu": watch.cpu_seconds / max(watch.moments[-1], 1e-9),
        "zones": _zones(crowd, profile),
    }


def _phases(gateway: Mapping[str, Any]) -> dict[str, list[float]]:
    """The median over training rounds of their phases' median and 90th percentile of seconds."""
    rounds = [r for r in gateway.get("rounds", []) if r.get("seconds")]
    found = {}
    for phase in _PHASES:
        rows: npt.NDArray[np.float64] = np.array(
            [r["seconds"][phase] for r in rounds if r["seconds"].get(phase)], np.float64
        )
        if len(rows):
            found[phase] = [float(v) for v in np.median(rows, axis=0)]
    return found


def _zones(crowd: Mapping[str, Any], profile: Profile) -> list[dict[str, float]]:
    """For each time zone: calls and tasks of a phone in a minute in which it is there."""
    rows = []
    for zone in crowd["zones"]:
        number = zone["zone"]
        minutes = awake_seconds(profile, number, crowd["seconds"]) / 60 * zone["phones"]
        rows.append(
            {
                "phones": zone["phones"],
                "awake": profile.zones[number].awake,
                "haste": profile.zones[number].haste,
                "check_ins": zone["check_ins"],
                "tasks": zone["tasks"],
                "check_ins_per_minute": zone["check_ins"] / max(minutes, 1e-9),
                "tasks_per_minute": zone["tasks"] / max(minutes, 1e-9),
            }
        )
    return rows
