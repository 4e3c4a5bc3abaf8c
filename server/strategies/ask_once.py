"""Strategies that ask each client only once."""

from __future__ import annotations

from common.types import ClientPlan, UpdateBatch

__all__ = ["ask_once", "seen_with"]


def ask_once(seen: tuple[int, ...], *fields: str) -> ClientPlan:
    """Ask clients that were not asked yet for statistics.

    Args:
        seen: ids of the others.
        fields: what they send.
    """
    return ClientPlan(kind="statistics", fields=fields, weighting="uniform", exclude=seen)


def seen_with(seen: tuple[int, ...], updates: UpdateBatch) -> tuple[int, ...]:
    """The ids of clients with those of a round, ascending."""
    return tuple(sorted((*seen, *(i for ids in updates.client_ids for i in ids))))
