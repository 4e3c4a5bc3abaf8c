"""The last head's accuracy at each client, which it measures on its own test part."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Message, RecordDict

from common.datasets import Dataset
from common.errors import FedheadError, ReplyError
from common.experiment import client_shares
from common.messages import ClientEvaluation, EvaluateReply, EvaluateRequest
from common.noise import COUNTED_CLIENTS, COUNTED_EXAMPLES
from common.temperature import check_losses, largest_spread
from common.types import Affine, Head
from server.record.runfolder import CLIENTS
from server.round.algorithm import Run
from server.round.exchange import ask
from server.round.gateways import asked_again
from server.round.replies import check_lengths

__all__ = ["NOT_ASKED", "ClientFigures", "ask_clients", "write_clients"]

logger = logging.getLogger("fedhead")

_PARTS = ("mean", "p10", "min")


@dataclass(frozen=True)
class ClientFigures:
    """Counts by client.

    Attributes:
        num_examples: number of test examples, for each client with a test part.
        correct: number that the global head classifies correctly.
        personal_correct: number that the client's own head classifies correctly, without phones,
            which make none; None: no personal heads.
        local_correct: number that a head of the client's own examples alone classifies correctly;
            None: nobody asked for such heads.
        losses: float64 (49,), the client's mean loss at each value of
            ``common.temperature.SHARPNESS``.
        asked: whether anybody asked the clients; a private run does not.
    """

    num_examples: Mapping[int, int]
    correct: Mapping[int, int]
    personal_correct: Mapping[int, int] | None
    local_correct: Mapping[int, int] | None = None
    losses: Mapping[int, npt.NDArray[np.float64]] = field(default_factory=dict)
    asked: bool = True

    def summary(self) -> dict[str, Any]:
        """Mean, 10th percentile and worst of the clients' accuracies, and the counts behind them.

        The mean is over all clients. Percentile and worst are over clients with at least
        ``COUNTED_EXAMPLES``, and None if these are fewer than ``COUNTED_CLIENTS``. With few
        examples, the worst client would only be the unluckiest one. All is None if no client
        was asked.
        """
        sizes = sorted(self.num_examples.values())
        rows = {
            "client_accuracy": self.correct,
            "personal_accuracy": self.personal_correct,
            "local_accuracy": self.local_correct,
        }
        spread = {
            f"{name}_{part}": value
            for name, correct in rows.items()
            for part, value in zip(_PARTS, self._spread(correct), strict=True)
        }
        tests = {
            "clients": len(sizes),
            "examples": sum(sizes),
            "fewest": sizes[0] if sizes else 0,
            "most": sizes[-1] if sizes else 0,
            "counted": sum(size >= COUNTED_EXAMPLES for size in sizes),
        }
        return {
            **spread,
            "clients_better_alone": self._better_alone(),
            "client_tests": tests if self.asked else None,
        }

    def _better_alone(self) -> int | None:
        """How many clients classify more correctly without the others."""
        if self.local_correct is None:
            return None
        federated = self.correct if self.personal_correct is None else self.personal_correct
        return sum(right > federated[client] for client, right in self.local_correct.items())

    def _spread(self, correct: Mapping[int, int] | None) -> tuple[float | None, ...]:
        rates = {client: n / self.num_examples[client] for client, n in (correct or {}).items()}
        if not rates:
            return (None, None, None)
        mean = float(np.mean(list(rates.values())))
        counted = [
            rate for client, rate in rates.items() if self.num_examples[client] >= COUNTED_EXAMPLES
        ]
        if len(counted) < COUNTED_CLIENTS:
            return (mean, None, None)
        return mean, float(np.percentile(counted, 10)), min(counted)


NOT_ASKED = ClientFigures({}, {}, None, asked=False)


def ask_clients(
    run: Run, head: Head, personal: float, affine: Affine, leverage: float = 0.0
) -> ClientFigures:
    """Let clients evaluate a head. Clients without a valid answer are left out.

    So are clients that still owe a round its answer: waiting for them could take another deadline.
    A private run asks nobody: no noise would cover what clients count on their own test parts.

    Args:
        run: grid, registry and configuration.
        head: the global head.
        personal: lambda of the clients' own heads; 0: none; -1: each client chooses its own.
        affine: how integer features become x.
        leverage: mean leverage of the clients' examples in the head; 0 if nobody knows it.
    """
    if run.config.privacy.active:
        return NOT_ASKED
    # A device makes a head of its own images only where it will keep a personal head: its owner
    # would see nothing of another one.
    alone = personal != 0 or (run.registry.simulated and run.config.baseline.enabled)
    by_node, deadline = _free_clients(run), run.config.round.deadline_seconds
    phones = {i for node, some in by_node.items() if run.registry.is_gateway(node) for i in some}
    if phones and personal:
        logger.info("%d phones make no heads of their own: they only evaluate", len(phones))

    ends = time.monotonic() + deadline

    def content(node: int) -> RecordDict:
        asked, common = tuple(by_node[node]), (run.fingerprint, run.run_id)
        if run.registry.is_gateway(node):
            left = max(0.0, ends - time.monotonic())
            return EvaluateRequest(head, asked, *common, seconds=left).write()
        return EvaluateRequest(head, asked, *common, personal, leverage, alone).write()

    answers, errors = ask(
        run.grid,
        "evaluate",
        content,
        sorted(by_node),
        deadline,
        run.registry.refuse,
        again=asked_again(
            run.registry,
            by_node,
            deadline,
            lambda node: Message(content(node), dst_node_id=node, message_type="evaluate"),
        ),
    )
    for node, reason in errors.items():
        logger.warning("%s did not evaluate: %s", run.registry.node_name(node), reason)
    found: dict[int, ClientEvaluation] = {}
    spread = largest_spread(head, affine)
    for node in sorted(answers):
        asked = by_node[node]
        try:
            check_lengths(answers[node], len(asked))
            reply = EvaluateReply.read(answers[node])
            _check(reply, set(asked))
            for own in reply.evaluations:
                check_losses(own.curve, head.num_classes, spread)
        except FedheadError as exc:
            run.registry.refuse(node, f"sends an invalid evaluation, {exc}")
        else:
            found |= {own.client: own for own in reply.evaluations}
    found = dict(sorted(found.items()))
    own_heads = {client: own for client, own in found.items() if client not in phones}
    return ClientFigures(
        {client: own.num_examples for client, own in found.items()},
        {client: own.correct for client, own in found.items()},
        {client: own.personal_correct for client, own in own_heads.items()} if personal else None,
        {client: own.alone_correct for client, own in own_heads.items()} if alone else None,
        {client: own.curve for client, own in found.items()},
    )


def _free_clients(run: Run) -> dict[int, list[int]]:
    """By node, its clients that owe no round an answer."""
    by_node: dict[int, list[int]] = {}
    run.registry.stragglers.poll()
    if busy := run.registry.stragglers.busy() & run.registry.clients.keys():
        logger.info("%d clients do not evaluate: they still owe an answer to a round", len(busy))
    for number, client in sorted(run.registry.clients.items()):
        if number not in busy:
            by_node.setdefault(client.node, []).append(number)
    return by_node


def _check(reply: EvaluateReply, asked: set[int]) -> None:
    """Refuse a client that was not asked, and impossible counts.

    Raises:
        ReplyError: says what is wrong.
    """
    seen: set[int] = set()
    for own in reply.evaluations:
        if own.client not in asked:
            raise ReplyError(f"it speaks for client {own.client}, which it was not asked for")
        if own.client in seen:
            raise ReplyError(f"it names client {own.client} twice")
        seen.add(own.client)
        total = own.num_examples
        correct = (own.correct, own.personal_correct, own.alone_correct)
        if not (1 <= total < 2**31 and all(0 <= right <= total for right in correct)):
            raise ReplyError(f"it counts {max(correct)} of {total} examples as correct")
        if not math.isfinite(own.loss):
            raise ReplyError("a loss is not finite")


def write_clients(path: Path, run: Run, dataset: Dataset, figures: ClientFigures) -> None:
    """Write each simulated client's label counts and accuracy as lists in JSON.

    ``train_label_counts`` count true labels, without noise or attacks. A client without a test part
    or without a valid evaluation has 0 test examples.
    """
    shares, k = client_shares(run.config), dataset.num_classes
    clients = sorted(run.registry.clients)

    def column(values: Mapping[int, int]) -> list[int]:
        return [values.get(client, 0) for client in clients]

    own, alone = figures.personal_correct, figures.local_correct
    content = {
        "client": clients,
        "train_label_counts": [
            np.bincount(dataset.labels[shares[client].train], minlength=k).tolist()
            for client in clients
        ],
        "test_examples": column(figures.num_examples),
        "test_correct": column(figures.correct),
        "personal_correct": None if own is None else column(own),
        "local_correct": None if alone is None else column(alone),
    }
    CLIENTS.write(path, content)
