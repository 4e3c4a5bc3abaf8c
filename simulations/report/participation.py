"""How real devices and phones took part in runs, as the page shows it.

As Bonawitz et al., "Towards federated learning at scale: system design" (2019, arXiv 1902.01046):
participation, drop-outs by reason, and the time of each phase.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulations.report.comparison import Setting

__all__ = ["Shown", "participations"]


@dataclass(frozen=True)
class Shown:
    """One run's participation in words.

    Attributes:
        label: of the run.
        asked: number of asked clients.
        valid: number of updates that counted.
        share: of those, among the asked.
        dropouts: reason, number and share of the others.
        phases: phase, median and 90th percentile of seconds.
    """

    label: str
    asked: str
    valid: str
    share: str
    dropouts: tuple[tuple[str, str, str], ...]
    phases: tuple[tuple[str, str, str], ...]


def participations(setting: Setting) -> list[Shown]:
    """Those of a setting's runs that tell it."""
    found = []
    for entry in setting.entries:
        for run in entry.runs:
            if (took := run.participation) is None:
                continue
            total = max(took.asked, 1)
            phases = took.phase_seconds.items()
            found.append(
                Shown(
                    label=f"{entry.label}, seed {run.seed}",
                    asked=f"{took.asked:,}",
                    valid=f"{took.valid:,}",
                    share=_share(took.valid, total),
                    dropouts=tuple(
                        (why, f"{n:,}", _share(n, total)) for why, n in took.dropouts.items()
                    ),
                    phases=tuple((name, f"{p50:.3g}", f"{p90:.3g}") for name, (p50, p90) in phases),
                )
            )
    return found


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.1f} %"
