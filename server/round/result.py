"""A round's figures: who was asked, who gave an update, and why others gave none."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from flwr.app import Message

from common.config import NO_PRIVACY, PrivacyConfig
from common.messages import TrainReply
from common.phones import GATEWAY
from common.words import one_line
from server.record.accounts import Accounts
from server.record.events import event
from server.record.untold import UNTOLD_REASON
from server.round.exchange import error_reason, has_declined

__all__ = ["DROPOUTS", "PHASES", "Dropout", "RoundResult", "read_phases"]

Dropout = Literal[
    "over-selected", "late", "silent", "declined", "unable", "failed", "refused", "spared"
]
DROPOUTS: tuple[Dropout, ...] = (
    "over-selected", "late", "silent", "declined", "unable", "failed", "refused", "spared"
)  # fmt: skip
"""Why asked clients give no update that counts: enough others were faster; too slow for the
deadline; no answer at all; its owner's conditions; lacks what the task needs; an error; its update
was refused; the round was lost before it had begun."""

# A gateway's words for what is no fault; all others are a refusal.
_FAULTLESS: Mapping[str, Dropout] = {
    "late": "late", "declined": "declined", "unable": "unable", "failed": "failed",
}  # fmt: skip
PHASES = ("waiting", "fetching", "training", "uploading")
"""What a phone's time goes to, from the request to its update."""

_MOST_KINDS = 3  # that a line tells
_MOST_NAMED = 5  # phones of a kind that get lines of their own


@dataclass
class RoundResult:
    """Figures of one round's training; counts are of clients.

    Attributes:
        round_number: from 1.
        accounts: receives the same figures by client.
        privacy: the run's; what single clients do, and why, may then be left out of the log. The
            figures are all here; see server.record.untold for what is told of them.
        cohort: number of asked clients; each gave a valid update, a rejected one, or failed.
        wanted: number of valid updates that the round wanted.
        valid: number of updates that counted.
        rejected: number of updates that a node or the server refused.
        failed: clients without an answer: errors, missed deadlines, simulated absence.
        dropped: the part of ``failed`` that are simulated clients which never answered.
        dropouts: number of asked clients without an update that counts, by reason; together they
            are the rejected and the failed.
        late: answers after a round had closed: simulated clients' answers to this round, real
            clients' answers to earlier rounds.
        accepted: whether there is a new head.
        simulated_seconds: time that the round would have taken on phones; None: not simulated.
        train_seconds: real time from asking the clients to the new head.
        num_examples: number of examples behind the valid updates.
        uplink_bytes: payloads of the replies, as if each client sent its own.
        downlink_bytes: payloads of the requests, as if each client got its own, and of the
            projection with a client's first.
        loss_before: mean training loss of the global head, weighted by examples; None if the run is
            private, or no update was valid.
        loss_after: the same for the clients' own heads.
        phase_seconds: of a gateway's phones, by phase, the median and the 90th percentile.
        metrics: the strategy's metrics of the round, by kebab-case name.
    """

    round_number: int
    accounts: Accounts
    privacy: PrivacyConfig = NO_PRIVACY
    cohort: int = 0
    wanted: int = 0
    valid: int = 0
    rejected: int = 0
    failed: int = 0
    dropped: int = 0
    late: int = 0
    accepted: bool = False
    simulated_seconds: float | None = None
    train_seconds: float = 0.0
    num_examples: int = 0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    loss_before: float | None = None
    loss_after: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    dropouts: Counter[Dropout] = field(default_factory=Counter)
    phase_seconds: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def reject(self, client: int, reason: str) -> None:
        """Record that an update is refused."""
        self._refuse([client])
        self._tell("rejected", client, UNTOLD_REASON if self.privacy.active else reason)

    def _refuse(self, clients: Sequence[int]) -> None:
        self.rejected += len(clients)
        self.dropouts["refused"] += len(clients)
        self.accounts.add("rejected", clients)

    def fail(self, clients: Sequence[int], reason: str, why: Dropout = "failed") -> None:
        """Record that clients give no update, with a log line for each."""
        self.miss(clients, why)
        for client in clients:
            self._tell("failed", client, reason)

    def fail_with(self, clients: Sequence[int], error: Message) -> None:
        """Record that the clients' node, or Flower in its place, answers with an error."""
        declined = has_declined(error)
        verb, kind = (" declines", "declined") if declined else ("", "failed")
        reason = UNTOLD_REASON if self.privacy.active else error_reason(error)
        self.miss(clients, "declined" if declined else "failed")
        for client in clients:
            self._tell(kind, client, reason, verb)

    def fail_phones(self, phones: Sequence[int], reason: str, why: Dropout = "failed") -> None:
        """Record that phones give no update because of their gateway, with a log line for all."""
        self.miss(phones, why)
        if self.privacy.hides_cohorts or not phones:
            return
        count, reason = len(phones), one_line(reason)
        who = f"{GATEWAY}, {count:,} phone{'s' if count > 1 else ''}"
        event(
            "failed", f"round {self.round_number}: {who}: {reason}",
            level=logging.WARNING, round=self.round_number, name=GATEWAY, reason=reason,
        )  # fmt: skip

    def miss(self, clients: Sequence[int], why: Dropout) -> None:
        """Record that clients give no update, without a log line."""
        self.failed += len(clients)
        self.dropouts[why] += len(clients)
        self.accounts.add("failed", clients)

    def drop_out(self, phones: Mapping[int, str], *, enough: bool) -> None:
        """Record why phones give no update that counts: few log lines, however many they are.

        Args:
            phones: a gateway's reasons, each a word and perhaps details, by client.
            enough: whether the gateway had as many updates as were wanted of it.
        """
        if self.privacy.active:  # it is not told why, so none of it counts as a fault
            self.miss([*phones], "failed")
            self._tell_dropouts(Counter(failed=len(phones)), len(phones))
            return
        words = Counter[str]()
        refused: dict[str, list[int]] = {}
        missed: dict[Dropout, list[int]] = {}
        for client, reason in phones.items():
            kind = _FAULTLESS.get(reason.partition(":")[0].strip())
            if kind is None:
                refused.setdefault(reason, []).append(client)
                continue
            kind = "over-selected" if kind == "late" and enough else kind
            missed.setdefault(kind, []).append(client)
        for kind, clients in missed.items():
            self.miss(clients, kind)
            words[kind] = len(clients)
        for reason, clients in refused.items():
            for client in clients[:_MOST_NAMED]:
                self.reject(client, reason)
            self._refuse(clients[_MOST_NAMED:])
            words["refused"] += len(clients)
        self._tell_dropouts(words, len(phones))

    def _tell_dropouts(self, words: Counter[str], count: int) -> None:
        if self.privacy.hides_cohorts or not count:
            return
        told = {} if self.privacy.active else dict(words)
        most = Counter(told).most_common(_MOST_KINDS)
        rest = sum(told.values()) - sum(number for _, number in most)
        parts = [*most, ("others", rest)] if rest else most
        why = ", ".join(f"{number:,} {kind}" for kind, number in parts) or UNTOLD_REASON
        who = "1 phone drops out" if count == 1 else f"{count:,} phones drop out"
        number = self.round_number
        event("dropouts", f"round {number}: {who}: {why}", round=number, **told)

    def answered_late(self, clients: Sequence[int]) -> None:
        """Record that clients answered after their round had closed."""
        self.late += len(clients)
        self.accounts.add("late", clients)

    def send(self, clients: Sequence[int], size: int) -> None:
        """Record that each of some clients gets a request of this number of bytes."""
        self.downlink_bytes += self.accounts.send(clients, size)

    def count(self, replies: Sequence[TrainReply]) -> None:
        """Add up the reports of valid replies."""
        reports = [report for reply in replies for report in reply.reports]
        self.valid = len(reports)
        if not reports:
            return
        clients = [report.client for report in reports]
        counts = np.array([report.num_examples for report in reports], np.float64)
        sizes = [report.payload_bytes for report in reports]
        self.num_examples = int(counts.sum())
        self.uplink_bytes = sum(sizes)
        self.accounts.add("valid", clients)
        self.accounts.add("uplink_bytes", clients, sizes)
        if self.privacy.active:  # clients tell neither
            return
        before = np.array([report.loss_before for report in reports])
        after = np.array([report.loss_after for report in reports])
        self.loss_before = float(before @ counts / counts.sum())
        self.loss_after = float(after @ counts / counts.sum())

    def _tell(self, kind: str, client: int, reason: str, verb: str = "") -> None:
        if self.privacy.hides_cohorts:  # nobody may know that it was asked
            return
        # Text from a device must not look like other lines of the log.
        number, name, reason = self.round_number, self.accounts.name(client), one_line(reason)
        event(
            kind, f"round {number}: {name}{verb}: {reason}",
            level=logging.WARNING, round=number, client=client, name=name, reason=reason,
        )  # fmt: skip


def read_phases(data: bytes) -> dict[str, tuple[float, float]]:
    """Median and 90th percentile of each phase, in seconds; empty if they are none.

    Args:
        data: see ``TrainReply.phases``.
    """
    if len(data) != 8 * 2 * len(PHASES):
        return {}
    table = np.frombuffer(data, "<f8").reshape(len(PHASES), 2)
    if not (np.isfinite(table).all() and (table >= 0).all()):
        return {}
    return {
        name: (round(p50, 3), round(p90, 3))
        for name, (p50, p90) in zip(PHASES, table.tolist(), strict=True)
    }
