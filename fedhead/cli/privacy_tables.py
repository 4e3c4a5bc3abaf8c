"""A ledger for a terminal of 80 columns, and for other programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from common.privacy.ledger import Entry, spent
from common.privacy.rule import Mechanism
from common.privacy.words import figure
from server.record.privacy import Privacy

__all__ = ["ledger_json", "ledger_tables"]

_MOST_ROWS = 20
"""Releases that are listed: of more, an even sample with the first and the last."""

_MECHANISMS: Mapping[Mechanism, str] = {
    "everyone": "everyone: each round asks every client",
    "poisson": "poisson: a secret coin decides whether a round asks a client",
    "min-separation": "min-separation: a client is asked again only after a number of rounds",
    "one-shot": "one-shot: statistics, released once",
}


def ledger_tables(
    title: str, privacy: Privacy, entries: Sequence[Entry]
) -> Iterator[RenderableType]:
    """The sentence, the terms in plain words, and the releases."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, words in _terms(privacy, entries).items():
        table.add_row(name, words)
    yield table
    if entries:
        yield _releases(privacy, entries)
    for line in _remarks(privacy):
        yield Padding(Text(line), (0, 0, 0, 2))
    yield Text(privacy.sentence, style="bold")


def _terms(privacy: Privacy, entries: Sequence[Entry]) -> dict[str, str]:
    count = len(privacy.releases)
    of = f"by {count:,} release{'s' * (count != 1)}" if count else "nothing is released yet"
    terms = {
        "budget": f"epsilon {figure(privacy.epsilon)}, delta {privacy.delta:g}",
        "spent": f"epsilon {figure(privacy.spent)}, {of}",
        "protected": f"each {privacy.unit}, all its examples together",
        "neighbours": privacy.neighbours,
        "mechanism": _MECHANISMS[privacy.mechanism],
    }
    if privacy.clients is not None:
        terms["clients"] = f"{privacy.clients:,}; their number is public"
    if entries and entries[0].rate is not None:
        terms["chance to be asked"] = f"{entries[0].rate:.3g} in each round"
    if entries and entries[0].separation is not None:
        terms["asked again"] = f"after {entries[0].separation:,} rounds at the earliest"
    terms["noise"] = (
        "from the run's seed: a simulation, anyone can take it off"
        if privacy.simulated
        else "from a secret of the run's own"
    )
    return terms


def _releases(privacy: Privacy, entries: Sequence[Entry]) -> Table:
    table = Table(title="Releases", title_justify="left")
    for name in ("round", "noise, in clips", "clip", "epsilon so far"):
        table.add_column(name, justify="right")
    repeated = any(release.again for release in privacy.releases)
    if repeated:
        table.add_column("")
    for i in _shown(len(entries)):
        release = privacy.releases[i]
        table.add_row(
            f"{release.round:,}",
            f"{release.multiplier:.4g}",
            f"{release.clip:.4g}",
            figure(spent(entries[: i + 1], privacy.delta)),
            *(["done again" if release.again else ""] if repeated else []),
        )
    return table


def _shown(count: int) -> list[int]:
    """Positions of the releases that are listed, ascending."""
    most = min(count, _MOST_ROWS)
    return sorted({round(i * (count - 1) / max(1, most - 1)) for i in range(most)})


def _remarks(privacy: Privacy) -> Iterator[str]:
    """What the table does not say by itself."""
    if (count := len(privacy.releases)) > _MOST_ROWS:
        yield f"{_MOST_ROWS} of {count:,} releases; --json has them all."
    again = sorted({release.round for release in privacy.releases if release.again})
    if again:
        rounds = f"round{'s' * (len(again) > 1)} {', '.join(map(str, again))}"
        yield (
            f"After an interruption {rounds} had other sums than before, so that both releases "
            "count. The same sums get the same noise again, and cost nothing."
        )
    if privacy.releases:
        yield (
            "Noise is the standard deviation of what is added to the sum of all clients' "
            "updates; a client moves that sum by one clip at most."
        )


def ledger_json(privacy: Privacy, entries: Sequence[Entry]) -> dict[str, Any]:
    """The same as plain values, with every release."""
    releases = [
        {**asdict(release), "digest": entry.digest, "rate": entry.rate,
         "separation": entry.separation}
        for release, entry in zip(privacy.releases, entries, strict=True)
    ]  # fmt: skip
    return {**asdict(privacy), "sentence": privacy.sentence, "releases": releases}
