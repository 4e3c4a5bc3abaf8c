"""An audit for a terminal of 80 columns, and in plain sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from simulations.probe.audit.attack import Reading
from simulations.probe.audit.audit import Audit, Finding

__all__ = ["as_json", "audit_table", "sentences"]

_ALIKE = 0.99
"""Likeness from which on features are said to be read."""
_CHANCE = 0.1
"""A likeness by which noise alone may differ from a guess."""


def as_json(audit: Audit) -> dict[str, Any]:
    """All figures, for scripts, with what the sentences say."""
    return {**asdict(audit), "sentences": sentences(audit)}


def audit_table(audit: Audit) -> Table:
    """What was read, a column for each way to run."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.title = Text("What can be read of a client", style="bold not italic")
    table.title_justify = "left"
    table.add_column("", no_wrap=True)
    for finding in audit.findings:
        table.add_column(Text(_heading(finding)), justify="right", no_wrap=True)
    for section, name, cell in _rows():
        cells = [Text("-" if found.refused else cell(found)) for found in audit.findings]
        if section:
            table.add_row(Text(name, style="bold"), *[""] * len(cells))
        elif any(str(one) != "-" for one in cells):
            table.add_row(Text(f"  {name}"), *cells)
    return table


def _heading(finding: Finding) -> str:
    """Three short lines: four columns and the names fit beside each other on 80 columns."""
    kind = "projected" if finding.projected else "features"
    privacy = "privacy" if finding.private else "no privacy"
    if finding.refused:
        return f"{'' if finding.projected else 'all'}\n{kind},\n{privacy}".strip()
    if finding.epsilon is not None:
        privacy = f"epsilon {finding.epsilon:g}"
    return f"{finding.directions:,}\n{kind},\n{privacy}{'*' if finding.is_own else ''}"


def _rows() -> Iterator[tuple[bool, str, Callable[[Finding], str]]]:
    def of(who: str, figure: Callable[[Reading], str]) -> Callable[[Finding], str]:
        def cell(finding: Finding) -> str:
            reading: Reading | None = getattr(finding, who)
            return "-" if reading is None else figure(reading)

        return cell

    titles = {"server": "THE SERVER", "others": "EVERYBODY ELSE", "guess": "A GUESS"}
    for who, title in titles.items():
        yield True, title, str
        yield False, "label of a lone image", of(who, lambda r: _percent(r.label))
        yield False, "features, exact", of(who, lambda r: _percent(r.exact))
        yield False, "features, likeness", of(who, lambda r: f"{r.likeness:.2f}")
        yield False, "own image told apart", of(who, lambda r: _percent(r.told_apart))
        if who == "server":
            yield False, "lone classes, exact", _lone
        if who == "others":
            yield False, "who took part, right", _right


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _lone(finding: Finding) -> str:
    return "-" if finding.lone_classes is None else str(finding.lone_classes)


def _right(finding: Finding) -> str:
    if finding.others is None:
        return "-"
    return _percent(finding.membership.right if finding.membership else 1.0)


def sentences(audit: Audit) -> list[str]:
    """What the figures mean, in words that need no other page."""
    own = next((one for one in audit.findings if one.is_own), None)
    return [
        f"{audit.clients:,} clients, strategy {audit.strategy}. * is the run as it is; the other "
        "columns are the same clients otherwise.",
        f"Lone images: {audit.lone_images}, each as if a client had this one alone. Own images: "
        f"the {audit.images:,} of client {audit.client}, told apart from other people's. All from "
        "one round; who took part is told from all rounds.",
        *([_of_server(own), _of_others(own, audit)] if own else []),
        *_of_projection(audit.findings),
        *_of_privacy(audit.findings),
        *_of_classes(audit),
        "Linear algebra alone was tried: what it did not read, something else may.",
    ]


def _of_server(own: Finding) -> str:
    line = "The server"
    if own.server:
        line += f" {_reads(own.server, own.guess)}."
    if own.private:
        line += " Privacy is no protection from it: it adds the noise, and sees updates before."
    return line


def _of_others(own: Finding, audit: Audit) -> str:
    if own.others is None:
        return (
            f"Everybody else: not tried, because {audit.strategy}'s head is no sum from which the "
            "other clients could be taken off."
        )
    who = "Everybody else, who sees the heads and may know what all other clients sent,"
    return f"{who} {_reads(own.others, own.guess)}."


def _reads(reading: Reading, guess: Reading | None) -> str:
    if reading.likeness >= _ALIKE:
        how = "exactly" if reading.exact >= _ALIKE else f"{_percent(reading.exact)} of them exactly"
        return f"reads the features of a lone image, {how}"
    if guess and reading.likeness <= guess.likeness + _CHANCE:
        return "gets no more of a lone image than by guessing"
    return f"gets the features of a lone image with a likeness of {reading.likeness:.2f}"


def _of_projection(findings: Sequence[Finding]) -> Iterator[str]:
    """What a projection hides: of what is sent, nothing."""
    plain = next((f for f in findings if not (f.projected or f.private or f.refused)), None)
    fewer = next((f for f in findings if f.projected and not (f.private or f.refused)), None)
    if plain and fewer and fewer.server and fewer.server.likeness >= _ALIKE:
        yield (
            f"A projection is no protection: what is sent is {fewer.directions:,} numbers an image "
            f"in place of {plain.directions:,}, and these are read."
        )


def _of_privacy(findings: Sequence[Finding]) -> Iterator[str]:
    found = next((f for f in findings if f.membership and f.is_own), None)
    found = found or next((f for f in findings if f.membership), None)
    if found is None or found.membership is None or found.epsilon is None:
        yield from (f"With privacy: {f.refused}." for f in findings[:2] if f.private)
        return
    member = found.membership
    if not found.is_own and found.others:
        yield f"With epsilon {found.epsilon:g} everybody else {_reads(found.others, found.guess)}."
    yield (
        f"Whether a client took part is certain without privacy. With epsilon {found.epsilon:g} "
        f"whoever knows all else is right in {_percent(member.right)} of cases, where guessing "
        "gives 50 %, about the client that is easiest to find."
    )
    line = (
        f"{member.draws:,} draws of the noise show, with 95 % confidence, an epsilon of "
        f"{member.epsilon:.2f} or more"
    )
    if member.epsilon > found.epsilon:
        yield f"{line}. That is ABOVE the claimed {found.epsilon:g}: the noise is too small."
    else:
        yield f"{line}; claimed are {found.epsilon:g} at delta {found.delta:g}."


def _of_classes(audit: Audit) -> Iterator[str]:
    if any(found.lone_classes is not None for found in audit.findings):
        yield (
            f"{audit.with_lone_class:,} of {audit.clients:,} clients have a class with one image. "
            "Without privacy the server finds its features among their sums, to the last bit."
        )
