"""Problems of nodes: each is logged once, and all are listed if a run cannot begin."""

from __future__ import annotations

from collections.abc import Callable, Mapping

__all__ = ["Complaints"]

_MOST_NAMED = 5  # nodes that one line names


class Complaints:
    """Remembers the last problem of each kind for each node."""

    def __init__(self) -> None:
        self._errors: dict[int, str] = {}
        self._refused: dict[int, str] = {}

    def refuse(self, node: int, reason: str) -> bool:
        """Remember what a node does against the rules; return whether it is new."""
        is_news = self._refused.get(node) != reason
        self._refused[node] = reason
        return is_news

    def replace_errors(self, errors: Mapping[int, str]) -> list[int]:
        """Set the nodes that cannot take part, with reasons; return those that are new."""
        news = [node for node, reason in errors.items() if self._errors.get(node) != reason]
        self._errors = dict(errors)
        return news

    def summary(self, name: Callable[[int], str]) -> str:
        """The problems, as the end of a sentence about missing clients; empty if there are none."""
        reasons = [f"{name(node)}: {why}" for node, why in sorted(self._errors.items())]
        reasons += [f"{name(node)} {why}" for node, why in sorted(self._refused.items())]
        text = "".join(f"; {reason}" for reason in reasons[:_MOST_NAMED])
        more = len(reasons) - _MOST_NAMED
        return text + (f"; and {more} more nodes" if more > 0 else "")
