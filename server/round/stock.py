"""Stock Flower strategies in the same round loop; for them, a node is a client.

The strategy sees a Grid on which exactly the round's cohort is connected. So fedhead chooses the
cohorts, reproducibly, and the strategy gets only replies that passed fedhead's checks.
"""

from __future__ import annotations

import dataclasses
import inspect
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from common.errors import ConfigError, FedheadError, ReplyError
from common.messages import TrainReply, TrainRequest, payload_bytes, read_head, write_head
from common.types import ClientPlan, Head, IntArray, Layout
from common.validate import check_fields
from server.record.checkpoint import Checkpoint
from server.round.algorithm import (
    Fault,
    RoundResult,
    Run,
    quorum,
    sample_cohort,
    tell_lost,
    tell_no_quorum,
)
from server.round.exchange import Exchange
from server.round.norms import no_norms, oversized, remembered, row_norms
from server.round.replies import check_lengths, check_reply, check_size
from server.strategies import import_strategy

__all__ = ["StockAlgorithm", "build_stock", "is_stock"]

_OURS = ("fraction_train", "min_train_nodes", "min_available_nodes")


def is_stock(name: str) -> bool:
    """Whether a strategy.name is the import path of a Flower strategy class or a subclass.

    Raises:
        ConfigError: it is an import path that cannot be imported.
    """
    if ":" not in name:
        return False
    found = import_strategy(name)
    return inspect.isclass(found) and issubclass(found, FlowerStrategy)


def build_stock(name: str, args: Mapping[str, Any], *, lr: float) -> FlowerStrategy:
    """Import a Flower strategy class and construct it.

    Every node of the cohort takes part, so fedhead sets the arguments for sampling. By default
    ``client_learning_rate`` is the run's.

    Args:
        name: import path, for example "flwr.serverapp.strategy:FedAdam".
        args: constructor arguments, kebab-case or snake_case keys.
        lr: the clients' learning rate.

    Raises:
        ConfigError: the path does not lead to such a class, or an argument does not fit.
    """
    if not is_stock(name):
        raise ConfigError([f"strategy.name={name!r} is not a Flower strategy class"])
    cls: Any = import_strategy(name)
    if "strategy" in inspect.signature(cls).parameters or "Xgb" in cls.__name__:
        raise ConfigError([f"strategy.name={name!r}: XGBoost and wrappers are not supported"])
    given = {key.replace("-", "_"): value for key, value in args.items()}
    if sampled := sorted(set(given) & set(_OURS)):
        raise ConfigError([f"strategy.args.{sampled[0]}: set train.clients-per-round instead"])
    parameters = inspect.signature(cls).parameters
    for key, value in given.items():
        wanted = getattr(parameters.get(key), "annotation", None)
        if wanted in (str, "str") and not isinstance(value, str):
            problem = f"strategy.args.{key}={value!r} must be text; put it in quotes"
            raise ConfigError([problem])
    if "client_learning_rate" in parameters:
        given.setdefault("client_learning_rate", lr)
    sampling = {
        "fraction_train": 1.0,
        "fraction_evaluate": 1.0,
        "min_train_nodes": 1,
        "min_available_nodes": 1,
    }
    given |= {key: value for key, value in sampling.items() if key in parameters}
    try:
        strategy: FlowerStrategy = cls(**given)
        return strategy
    except (TypeError, ValueError) as exc:
        raise ConfigError([f"strategy.args do not fit {cls.__name__}: {exc}"]) from exc


class _CohortGrid(Grid):
    """A Grid with only the round's nodes; strategies may ask it for nothing else."""

    def __init__(self, nodes: list[int]) -> None:
        self._nodes = nodes

    def get_node_ids(self) -> Iterable[int]:
        return self._nodes

    def _refuse(self, *_args: object, **_kwargs: object) -> Any:
        raise FedheadError("a strategy may not talk to nodes by itself")

    set_run = create_message = get_nodes = _refuse
    push_messages = pull_messages = send_and_receive = _refuse
    run = property(_refuse)


@dataclass(frozen=True, eq=False)
class _Private:
    """The part of the state that a checkpoint can hold: a stock strategy's own state is private."""

    accounts: IntArray


@dataclass(frozen=True, eq=False)
class _Update:
    """A valid reply: its client, its message for the strategy, its report and its norms."""

    client: int
    message: Message
    reply: TrainReply
    norms: npt.NDArray[np.float64]


class StockAlgorithm:
    """Runs a stock Flower strategy."""

    def __init__(self, run: Run, strategy: FlowerStrategy) -> None:
        self._run, self._strategy = run, strategy
        self.personal, self._norms = 0.0, no_norms()
        if run.registry.has_phones:
            raise FedheadError(
                "a stock strategy needs one node for each client, and all phones are behind the "
                "gateway's: take one of fedhead's strategies, or name devices in train.clients"
            )
        nodes = [client.node for client in run.registry.clients.values()]
        if len(set(nodes)) != len(nodes):
            raise FedheadError(
                f"a stock strategy needs one node for each client: {len(nodes)} clients are on "
                f"{len(set(nodes))} nodes (flwr run: set num-supernodes={len(nodes)})"
            )

    @property
    def state(self) -> _Private:
        return _Private(self._run.registry.accounts.table)

    def start(self, head: Head, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            raise FedheadError(
                "a run with a stock Flower strategy cannot be resumed: its state is private"
            )

    def step(self, round_number: int, head: Head, fault: Fault) -> tuple[Head, RoundResult] | None:
        run, config = self._run, self._run.config
        cohort, wanted = sample_cohort(run, round_number)
        client_of = {run.registry.clients[client].node: client for client in cohort}
        request = self._request(round_number, head)
        messages: list[Message] = []
        if cohort:  # without nodes, a strategy would wait for ever
            grid = _CohortGrid(list(client_of))
            messages += self._strategy.configure_train(
                round_number, write_head(head), request.config(), grid
            )
        started = time.perf_counter()
        result = RoundResult(round_number, run.registry.accounts, cohort=len(cohort), wanted=wanted)
        updates = self._collect(messages, client_of, head, result)
        valid = self._bounded(sorted(updates, key=lambda update: update.client), result)
        result.count([update.reply for update in valid])
        if result.valid >= quorum(config, wanted):
            head, result.accepted = self._aggregate(
                round_number, head, [update.message for update in valid], fault
            )
        else:
            tell_no_quorum(result, config)
        result.train_seconds = time.perf_counter() - started
        return head, result

    def _aggregate(
        self, round_number: int, head: Head, messages: list[Message], fault: Fault
    ) -> tuple[Head, bool]:
        """The next head; if it has a fault, the old one, and the strategy is restored."""
        before = dict(vars(self._strategy))  # strategies replace arrays, but do not change them
        arrays, _ = self._strategy.aggregate_train(round_number, messages)
        if arrays is None:
            return head, False
        new = read_head(RecordDict({"arrays": arrays}))
        if why := fault(new):
            vars(self._strategy).clear()
            vars(self._strategy).update(before)
            tell_lost(round_number, why)
            return head, False
        return new, True

    def _bounded(self, updates: list[_Update], result: RoundResult) -> list[_Update]:
        """The updates that are not far larger than the others, if such a bound is set."""
        if not updates or not self._run.bounds_by_median:
            return updates
        norms = np.stack([update.norms for update in updates])
        refused = oversized(norms, self._norms)
        self._norms = remembered(self._norms, np.delete(norms, sorted(refused), axis=0))
        for i, reason in refused.items():
            result.reject(updates[i].client, reason)
        return [update for i, update in enumerate(updates) if i not in refused]

    def _collect(
        self, messages: list[Message], client_of: dict[int, int], head: Head, result: RoundResult
    ) -> Iterator[_Update]:
        """All valid replies; the others are only counted."""
        run = self._run
        for message in messages:
            result.send([client_of[message.metadata.dst_node_id]], payload_bytes(message.content))
        seconds = run.config.round.deadline_seconds
        registry = run.registry
        exchange = Exchange(run.grid, messages, seconds, registry.look, registry.refuse)
        for node, message in exchange:
            client = client_of.pop(node)
            if message.has_error():
                result.fail_with([client], message)
                continue
            try:
                update = self._read(message, client, head)
            except FedheadError as exc:
                result.reject(client, str(exc))
            else:
                yield update
        left = {node: [client] for node, client in client_of.items()}
        run.registry.stragglers.add(result.round_number, exchange, left)
        for client in sorted(client_of.values()):
            result.fail([client], registry.silence(client), "silent")

    def _request(self, round_number: int, head: Head) -> TrainRequest:
        config = self._run.config
        return TrainRequest(
            head=head,
            plan=ClientPlan(),
            training=config.train.local(round_number),
            clients=(),
            round_number=round_number,
            run_id=self._run.run_id,
            seed=config.seed,
            fingerprint=self._run.fingerprint,
            reduce="stock",
            max_norm=self._run.max_norm,
        )

    def _read(self, message: Message, client: int, head: Head) -> _Update:
        check_lengths(message.content, 1)
        check_size(message.content, map(Layout, (head.weight.shape, head.bias.shape)), 1)
        reply = TrainReply.read(message.content)
        if reply.missing_backbone:
            self._run.registry.deliver_backbone([self._run.registry.clients[client].node])
            raise ReplyError("has lost the backbone; it is sent again for the next round")
        if reply.clients != (client,):
            reasons = "; ".join(rejection.reason for rejection in reply.rejected)
            raise ReplyError(reasons or "does not speak for itself")
        check_reply(reply, self._run, {client}, self._run.fingerprint)
        local = read_head(message.content)
        if local.weight.shape != head.weight.shape:
            raise ReplyError(f"head.weight is {local.weight.shape}, expected {head.weight.shape}")
        if not np.isfinite(local.matrix).all():
            raise ReplyError("head is not finite")
        delta = {"delta": (local.matrix - head.matrix).astype(np.float32)}
        check_fields(delta, {"delta": Layout(head.matrix.shape)}, self._run.max_norm)
        report = dataclasses.replace(reply.reports[0], payload_bytes=payload_bytes(message.content))
        reply = dataclasses.replace(reply, reports=(report,))
        # The strategy must see only what was checked; another record would end the run.
        message.content.clear()
        message.content.update(arrays=write_head(local), metrics=reply.stock_metrics())
        return _Update(client, message, reply, row_norms(delta))
