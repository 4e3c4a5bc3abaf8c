"""An operator's view of a deployment's phones, from the tokens and from the gateway's figures."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from common.delivery.tokens import TokenState
from common.errors import DamagedError
from common.phones import GATEWAY
from simulations.deploy.processes import is_held
from simulations.deploy.settings import gateway_folder, phone_folders

__all__ = ["DROPOUTS", "PhoneRow", "PhonesView", "RoundRow", "phone_names", "phones_view"]

logger = logging.getLogger("fedhead")

PhoneState = Literal["ready", "not ready", "problem", "never seen", "revoked"]

DROPOUTS = ("late", "declined", "failed", "refused", "silent")
"""Why asked phones give no update, as the gateway counts it."""


@dataclass(frozen=True)
class PhoneRow:
    """A phone.

    Attributes:
        name: of its token.
        state: what it said last, whenever that was.
        token: state of its token.
        seen: when it checked in last; None: never.
        problem: why it cannot take part, as it says; empty: nothing.
        tasks: number of tasks that it was asked for, but for private runs.
        accepted: number of accepted results.
        dropouts: number of others, by reason.
    """

    name: str
    state: PhoneState
    token: TokenState
    seen: datetime | None = None
    problem: str = ""
    tasks: int = 0
    accepted: int = 0
    dropouts: Mapping[str, int] = field(default_factory=dict)

    @property
    def lost(self) -> int:
        """Tasks that gave nothing."""
        return max(0, self.tasks - self.accepted)


@dataclass(frozen=True)
class RoundRow:
    """What came of one round's phones.

    Attributes:
        name: of the run.
        number: of the round.
        kind: "sgd", "statistics" or "evaluate".
        asked: number of phones.
        accepted: number of accepted results.
        dropouts: number of others, by reason.
        spare: number of those that the round did not wait for, because it had enough.
        seconds: by phase, median and 90th percentile over accepted results.
    """

    name: str
    number: int
    kind: str
    asked: int
    accepted: int
    dropouts: Mapping[str, int]
    spare: int
    seconds: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class PhonesView:
    """A deployment's phones.

    Attributes:
        rows: all phones in the order of names.
        served: whether a gateway runs here.
        lately: number of phones that checked in lately.
        window: seconds within which a phone comes again; None: nobody knows.
        counters: the gateway's counts of verdicts and problems since it was made.
        rounds: the last rounds, the newest last; private runs' are not among them.
    """

    rows: Sequence[PhoneRow]
    served: bool
    lately: int = 0
    window: tuple[float, float] | None = None
    counters: Mapping[str, int] = field(default_factory=dict)
    rounds: Sequence[RoundRow] = ()


def phone_names(
    server: Path, tokens: Mapping[str, TokenState], keys: Collection[str]
) -> dict[str, TokenState]:
    """The phones' tokens: all without a key if there is a gateway, else those that have a folder.

    Args:
        server: the server's folder.
        tokens: states of all tokens, by name.
        keys: names that have or had a key.
    """
    own = {path.name for path in phone_folders(server.parent)}
    has_gateway = (server / "devices" / f"{GATEWAY}.pub").exists()
    without = {name: state for name, state in tokens.items() if name not in keys}
    return {name: state for name, state in without.items() if has_gateway or name in own}


def phones_view(server: Path, names: Mapping[str, TokenState]) -> PhonesView | None:
    """The phones of these names; None if there are none."""
    if not names:
        return None
    served = gateway_folder(server).is_dir() and is_held(gateway_folder(server))
    kept = _figures(server)
    said: Mapping[str, Any] = kept.get("phones", {})
    rows = [_row(name, state, said.get(name)) for name, state in sorted(names.items())]
    window = kept.get("window")
    return PhonesView(
        rows,
        served,
        lately=int(kept.get("checked_in_lately", 0)),
        window=(float(window[0]), float(window[1])) if window else None,
        counters=kept.get("counters", {}),
        rounds=[_round(row) for row in kept.get("rounds", [])],
    )


def _figures(server: Path) -> Mapping[str, Any]:
    # Imported here: without phones nobody needs it.
    from client.gateway.figures import read_fleet

    try:
        return read_fleet(gateway_folder(server) / "state" / "fleet.json")
    except FileNotFoundError:
        return {}
    except DamagedError as exc:
        logger.warning("%s", exc)
        return {}


def _row(name: str, standing: TokenState, said: Mapping[str, Any] | None) -> PhoneRow:
    if said is None:
        return PhoneRow(name, "revoked" if standing == "revoked" else "never seen", standing)
    counts: Mapping[str, int] = said["counts"]
    state: PhoneState = "ready" if said["ready"] else "not ready"
    if said["problem"]:
        state = "problem"
    return PhoneRow(
        name,
        "revoked" if standing == "revoked" else state,
        standing,
        seen=datetime.fromtimestamp(said["last_seen"], UTC),
        problem=str(said["problem"]),
        tasks=counts.get("tasks", 0),
        accepted=counts.get("accepted", 0),
        dropouts={why: counts[why] for why in DROPOUTS if counts.get(why)},
    )


def _round(row: Mapping[str, Any]) -> RoundRow:
    counts = {**row, "refused": sum(row["refused"].values())}
    return RoundRow(
        name=str(row["name"]),
        number=int(row["round"]),
        kind=str(row["kind"]),
        asked=int(row["asked"]),
        accepted=int(row["accepted"]),
        dropouts={why: counts[why] for why in DROPOUTS if counts.get(why)},
        spare=int(row.get("over-selected", 0)),
        seconds={phase: (both[0], both[1]) for phase, both in row["seconds"].items() if both},
    )
