"""Sections on training: the strategy, clients, rounds, and what it is compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator

from common.config.numbers import Count, Fraction, Positive
from common.data_sources import function_of
from common.errors import ConfigError
from common.schedule import Schedule, ScheduleKind
from common.toml_model import Section
from common.types import LocalTraining, Optimizer

__all__ = ["CROSS_ENTROPY", "BaselineConfig", "RoundConfig", "StrategyConfig", "TrainConfig"]


def _update_norm(value: object) -> float | Literal["auto"]:
    if value == "auto":
        return "auto"
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and 0 <= (number := float(value)) < math.inf:  # type: ignore[arg-type]
        return number
    raise ValueError('must be "auto", or a finite number from 0 on')


UpdateNorm = Annotated[float | Literal["auto"], PlainValidator(_update_norm)]


def _number_or_share(value: object) -> int | float:
    """A whole number of clients, or a share of them; 1.0 might be meant as either."""
    if type(value) is int and value >= 0:
        return value
    if type(value) is float and 0 < value < 1:
        return value
    raise ValueError(
        "must be a whole number of clients, 0 for every one, or a share of them between 0 and 1"
    )


NumberOrShare = Annotated[int | float, PlainValidator(_number_or_share)]

CROSS_ENTROPY = "cross-entropy"


def _loss(value: str) -> str:
    if value != CROSS_ENTROPY and function_of(value) is None:
        raise ValueError(f'must be "{CROSS_ENTROPY}", or module:function for one of yours')
    return value


def _clients(value: list[int | str]) -> list[int | str]:
    """Whole numbers for simulated clients, or names for devices; each once."""
    if len({type(client) for client in value}) > 1:
        raise ValueError("must list ids of simulated clients or names of devices, not both")
    if twice := [client for i, client in enumerate(value) if client in value[:i]]:
        raise ValueError(f"lists {twice[0]!r} twice")
    return value


def _beyond(clients: Sequence[int | str], num_clients: int) -> str:
    """Which listed id is of no client; empty: none."""
    beyond = [c for c in clients if isinstance(c, int) and not 0 <= c < num_clients]
    return f"train.clients lists {beyond[0]}, ids go from 0 to {num_clients - 1}" if beyond else ""


class StrategyConfig(Section):
    """[strategy]: how the server aggregates."""

    name: str = Field("fedavg", min_length=1)
    """One of fedhead's own, or an import path: module:function for one of yours, module:Class
    for one of Flower's."""
    args: dict[str, Any] = Field(default_factory=dict)
    """The strategy's own settings, see fedhead strategies."""
    root: str = ""
    """Folder of a module of yours; empty: the experiment's, else the working folder, if it is in
    one of them."""
    init_from: str = ""
    """Run folder whose head is the first one, and whose backbone is this run's; rows are matched by
    the names of classes, new ones start at zero."""
    init: Literal["zeros", "fed3r"] = "zeros"
    """The first head; fed3r takes a first round in which every client sends its statistics."""
    init_temperature: Annotated[float, Field(gt=0)] = 10.0
    """The first head is this times the ridge head of fed3r, so that its softmax is sure."""
    init_lambda: Annotated[float, Field(gt=0)] = 10.0
    """Penalty of that ridge head."""
    precondition: Literal["none", "gram"] = "none"
    """gram: clients' gradients are multiplied by the inverse of all clients' Gram matrix."""
    precondition_lambda: Annotated[float, Field(gt=0)] = 100.0
    """What is added to that Gram matrix before it is inverted."""


class TrainConfig(Section):
    """[train]: rounds, and what a client does in one."""

    rounds: Positive = 50
    """Rounds of federated training."""
    clients_per_round: NumberOrShare = 0
    """How many are asked; below 1 a share of all clients, rounded up; 0: every client."""
    clients: Annotated[list[int | str], AfterValidator(_clients)] = Field(default_factory=list)
    """The only ones that take part: ids of simulated clients, from 0 on, or names of a
    deployment's devices. Empty: all."""
    lr: Annotated[float, Field(gt=0)] = 0.01
    """The clients' learning rate."""
    optimizer: Optimizer = "sgd"
    """What takes a client's steps; Adam and AdamW begin each round with fresh moments, and have
    torch's defaults. They need the reference trainer, which is then taken."""
    schedule: ScheduleKind = "constant"
    """How the learning rate goes on after the warm-up: linear and cosine fall towards 0, which the
    round after the last would have; step is multiplied by decay-factor every decay-rounds."""
    warmup_rounds: Count = 0
    """Rounds in which the learning rate rises evenly; the next is the first at full rate."""
    decay_rounds: Positive = 10
    """Rounds between two falls of schedule="step"."""
    decay_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """What each of them multiplies the learning rate by."""
    local_epochs: Positive = 1
    """Passes over its examples that a client makes in a round."""
    batch_size: Positive = 10
    """Examples a step."""
    momentum: Fraction = 0.0
    """Heavy-ball momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """L2 penalty; of AdamW, taken off the weights directly."""
    loss: Annotated[str, AfterValidator(_loss)] = CROSS_ENTROPY
    """What clients minimise: cross-entropy, or module:function for one of yours, in simulations
    only and on the reference trainer."""
    loss_root: str = ""
    """Folder of that module; empty: strategy.root, the experiment's, else the working folder, if it
    is in one of them."""

    def problem(self, num_clients: int | None) -> str:
        """What does not go together; empty if nothing.

        Args:
            num_clients: of the partition; None: the data say how many.
        """
        if num_clients is not None and (wrong := _beyond(self.clients, num_clients)):
            return wrong
        asked, listed = self.clients_per_round, self.clients
        if listed and isinstance(asked, int) and asked > len(listed):
            return (
                f"train.clients-per-round={asked} is more than the {len(listed)} of train.clients"
            )
        if self.optimizer != "sgd" and self.momentum:
            return (
                f"train.momentum={self.momentum:g} is SGD's: "
                f"train.optimizer={self.optimizer!r} has moments of its own"
            )
        if self.warmup_rounds >= self.rounds:
            return (
                f"train.warmup-rounds={self.warmup_rounds} must be below train.rounds={self.rounds}"
            )
        return ""

    @property
    def has_own_loss(self) -> bool:
        """Whether clients minimise a function of the user's."""
        return self.loss != CROSS_ENTROPY

    @property
    def needs_reference(self) -> bool:
        """Whether the dual form of a cohort cannot train it, see client.cohort."""
        return self.optimizer != "sgd" or self.has_own_loss

    def participants(self, num_clients: int) -> tuple[int, ...]:
        """The ids of those that take part, ascending.

        Args:
            num_clients: of the simulation.

        Raises:
            ConfigError: an id beyond them, or a name, which only a device has.
        """
        names = [client for client in self.clients if isinstance(client, str)]
        problem = _beyond(self.clients, num_clients)
        if names:
            ids = f"ids from 0 to {num_clients - 1}"
            problem = f"train.clients lists {names[0]!r}, but simulated clients have {ids}"
        if problem:
            raise ConfigError([problem])
        listed = [client for client in self.clients if isinstance(client, int)]
        return tuple(sorted(listed or range(num_clients)))

    def rate(self, round_number: int) -> float:
        """The learning rate of a round.

        >>> TrainConfig.model_validate({"lr": 0.1, "warmup-rounds": 1}).rate(1)
        0.05
        """
        return self.lr * self.rates.share(round_number)

    @property
    def rates(self) -> Schedule:
        """How the learning rate changes."""
        return Schedule(
            self.schedule, self.rounds, self.warmup_rounds, self.decay_rounds, self.decay_factor
        )

    def asked(self, num_clients: int) -> int:
        """How many of so many clients a round asks; 0: every one, however many come.

        >>> TrainConfig.model_validate({"clients-per-round": 0.1}).asked(55)
        6
        """
        number = self.clients_per_round
        return number if isinstance(number, int) else math.ceil(number * num_clients - 1e-9)

    def local(self, round_number: int) -> LocalTraining:
        """The part that a client needs in a round."""
        return LocalTraining(
            lr=self.rate(round_number),
            local_epochs=self.local_epochs,
            batch_size=self.batch_size,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            optimizer=self.optimizer,
        )


class RoundConfig(Section):
    """[round]: when a round closes and what is kept of it."""

    deadline_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """Real seconds that nodes have to answer; for simulated ones see [availability]."""
    over_selection: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Share of clients asked beyond train.clients-per-round; a round closes once that many updates
    are valid, and who is slower is late."""
    quorum: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the clients that a round wants whose updates must be valid, else the head stays."""
    max_update_norm: UpdateNorm = 0.0
    """An update of a larger L2 norm is refused; "auto": one over 10 times the median of the round's
    and of the run's first. 0: "auto" on a deployment's devices, in a simulation no bound."""
    max_examples_per_client: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Images that a client uses at most, evenly spread, training and test part together; a device
    that claims more is refused. 0: 1,000 on a deployment's devices, in a simulation no bound."""
    keep_checkpoints: Positive = 3
    """How many rounds' checkpoints stay."""


class BaselineConfig(Section):
    """[baseline]: what the same features give without federation."""

    epochs: Count = 30
    """Epochs of the centralized head, same optimizer; 0: skip both baselines."""
    lr: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate of the centralized head; 0: train.lr."""
    ridge_lambda: Annotated[float, Field(gt=0)] = 10.0
    """Penalty of the ridge head."""
