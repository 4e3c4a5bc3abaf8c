"""What is wrong with nodes: each thing is said once, and all of it where a run cannot begin."""

from __future__ import annotations

from collections.abc import Callable, Mapping

__all__ = ["Complaints"]

_MOST_NAMED = 5  # in one line


class Complaints:
    """Remembers the last of each kind for each node."""

    def __init__(self) -> None:
        self._errors: dict[int, str] = {}
        self._refused: dict[int, str] = {}

    def refuse(self, node: int, reason: str) -> bool:
        """A node does what it may not; whether that is news of it."""
        is_news = self._refused.get(node) != reason
        self._refused[node] = reason
        return is_news

    def replace_errors(self, errors: Mapping[int, str]) -> list[int]:
        """These nodes, and no others any more, cannot take part; those of which that is news."""
        news = [node for node, reason in errors.items() if self._errors.get(node) != reason]
        self._errors = dict(errors)
        return news

    def summary(self, name: Callable[[int], str]) -> str:
        """What follows a sentence that says that clients are missing; empty if nothing is wrong."""
        reasons = [f"{name(node)}: {why}" for node, why in sorted(self._errors.items())]
        reasons += [f"{name(node)} {why}" for node, why in sorted(self._refused.items())]
        text = "".join(f"; {reason}" for reason in reasons[:_MOST_NAMED])
        more = len(reasons) - _MOST_NAMED
        return text + (f"; and {more} more nodes" if more > 0 else "")
