"""Reads a node's answer to a round's request: checks all of it, and decodes its rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from flwr.app import RecordDict

from common.codecs.uplink import Uplink, decode_sum
from common.errors import FedheadError, ReplyError
from common.fields import check_plausible
from common.messages import Rejection, TrainReply, TrainRequest
from common.plausible import Limits
from common.types import ClientPlan, Head, Layout, UpdateBatch
from common.updates import added_up, client_weights
from common.validate import LARGEST, check_fields
from server.round.algorithm import Run
from server.round.replies import (
    check_lacks,
    check_lengths,
    check_payloads,
    check_reply,
    check_size,
    weighed,
)

__all__ = ["Reader"]


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads the answers of one round.

    Attributes:
        run: grid, registry and configuration.
        plan: the round's plan.
        head: the head that the clients start from.
        reduce: whether a node sends the weighted sum of its clients or each client's fields.
        round_number: from 1.
    """

    run: Run
    plan: ClientPlan
    head: Head
    reduce: Literal["sum", "individual"]
    round_number: int

    def check_row(
        self,
        fields: Mapping[str, npt.NDArray[np.generic]],
        num_examples: int,
        scale: float = 1.0,
        clients: int = 1,
    ) -> None:
        """Refuse an invalid row of fields.

        Args:
            fields: arrays without the row axis.
            num_examples: number of examples behind the row.
            scale: sum of the weights in the row; 1 for a single client.
            clients: number of clients whose fields were added up in the row.

        Raises:
            ReplyError: it has a wrong shape, is not finite, is above the norm bound or has
                impossible counts.
        """
        check_fields(fields, self.layouts, self.run.max_norm * scale * (1 + 1e-5), LARGEST * scale)
        steps = scale * self.run.config.train.local(1).most_steps(num_examples)
        rounding = self._uplink.codec.rounding
        check_plausible(fields, Limits(num_examples, steps, rounding, clients))

    @property
    def layouts(self) -> Mapping[str, Layout]:
        """Layouts of one row's arrays."""
        return self._uplink.layouts

    @property
    def _uplink(self) -> Uplink:
        """The encoding that the request asks for."""
        head, seed = self.head, self.run.config.seed
        return Uplink(self.plan, head.num_classes, head.num_features, seed, self.round_number)

    def read(
        self, content: RecordDict, request: TrainRequest
    ) -> tuple[TrainReply, UpdateBatch | None]:
        """A fully checked reply, and its rows if it has any that count.

        A phone whose row is refused is among the reply's rejected: it is not its gateway's fault.

        Raises:
            FedheadError: something in it is wrong.
        """
        clients = request.clients
        check_lengths(content, len(clients))
        layouts = self.layouts.values()
        rows = 1 if self.reduce == "sum" else len(clients)
        check_size(content, layouts, rows, clients=len(clients))
        reply = TrainReply.read(content)
        check_lacks(reply, request)
        if reply.lacks:
            # Nothing else in the reply has been checked.
            return dataclasses.replace(reply, reports=(), rejected=(), payloads={}), None
        check_reply(reply, self.run, set(clients), self.run.fingerprint)
        check_payloads(reply, layouts)
        registry = self.run.registry
        if registry.is_phone(clients[0]):
            return self._of_phones(reply)
        if len(clients) == 1 and not registry.simulated:
            reply = weighed(reply, content)
        return reply, self._batch(reply) if reply.reports else None

    def _of_phones(self, reply: TrainReply) -> tuple[TrainReply, UpdateBatch | None]:
        """A gateway's reply; single rows that are refused are left out of it."""
        if self.reduce != "sum" and reply.reports:
            reply = self._without_bad_rows(reply)
        return reply, self._batch(reply) if reply.reports else None

    def _without_bad_rows(self, reply: TrainReply) -> TrainReply:
        payloads, bad = self._rows(reply), dict[int, str]()
        for i, (report, payload) in enumerate(zip(reply.reports, payloads, strict=True)):
            try:
                row = self._uplink.decode(report.client, payload)
                self.check_row(row, report.num_examples)
            except FedheadError as exc:
                bad[i] = str(exc)
        if not bad:
            return reply
        good = [i for i in range(len(payloads)) if i not in bad]
        rejected = [Rejection(reply.reports[i].client, f"refused: {why}") for i, why in bad.items()]
        return dataclasses.replace(
            reply.only(good),
            rejected=(*reply.rejected, *rejected),
            payloads={name: tuple(rows[i] for i in good) for name, rows in reply.payloads.items()},
        )

    def _batch(self, reply: TrainReply) -> UpdateBatch:
        """A reply's rows, decoded and checked; one row if sums are wanted."""
        clients, uplink = reply.clients, self._uplink
        examples = np.array([report.num_examples for report in reply.reports], np.int64)
        weights = client_weights(self.plan, examples)
        payloads = self._rows(reply)
        if self.reduce == "sum" and uplink.is_summed(len(clients)):
            fields = decode_sum(payloads[0], self.layouts)
            # The norm of a weighted mean is at most the largest norm in it.
            self.check_row(fields, int(examples.sum()), float(weights.sum()), len(clients))
            return UpdateBatch(
                client_ids=(clients,),
                num_examples=examples.sum(keepdims=True),
                weights=weights.sum(keepdims=True),
                fields={name: array[None] for name, array in fields.items()},
            )
        rows = [uplink.decode(*pair) for pair in zip(clients, payloads, strict=True)]
        for row, count in zip(rows, examples.tolist(), strict=True):
            self.check_row(row, count)
        batch = UpdateBatch(
            client_ids=tuple((client,) for client in clients),
            num_examples=examples,
            weights=weights,
            fields={name: np.stack([row[name] for row in rows]) for name in self.plan.fields},
        )
        return added_up(batch) if self.reduce == "sum" else batch

    def _rows(self, reply: TrainReply) -> list[dict[str, bytes]]:
        """A reply's payloads, row by row.

        Raises:
            ReplyError: the fields or the number of rows are wrong.
        """
        count = len(reply.reports)
        if self.reduce == "sum" and self._uplink.is_summed(count):
            count = 1
        if set(reply.payloads) != set(self.plan.fields):
            raise ReplyError(
                f"sent the fields {sorted(reply.payloads)}, expected {sorted(self.plan.fields)}"
            )
        for name, rows in reply.payloads.items():
            if len(rows) != count:
                raise ReplyError(f"{name} has {len(rows)} rows, expected {count}")
        return [{name: rows[i] for name, rows in reply.payloads.items()} for i in range(count)]
