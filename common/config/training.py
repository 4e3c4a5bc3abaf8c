"""Sections on training: the strategy, clients, rounds, and what it is compared with."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator

from common.config.numbers import Count, Fraction, Positive
from common.toml_model import Section
from common.types import LocalTraining

__all__ = ["BaselineConfig", "RoundConfig", "StrategyConfig", "TrainConfig"]


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
    lr: Annotated[float, Field(gt=0)] = 0.01
    """Learning rate of the clients' SGD."""
    local_epochs: Positive = 1
    """Passes over its examples that a client makes in a round."""
    batch_size: Positive = 10
    """Examples a step."""
    momentum: Fraction = 0.0
    """Heavy-ball momentum."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """L2 penalty."""

    def asked(self, num_clients: int) -> int:
        """How many of so many clients a round asks; 0: every one, however many come.

        >>> TrainConfig.model_validate({"clients-per-round": 0.1}).asked(55)
        6
        """
        number = self.clients_per_round
        return number if isinstance(number, int) else math.ceil(number * num_clients - 1e-9)

    def local(self) -> LocalTraining:
        """The part that a client needs."""
        return LocalTraining(
            lr=self.lr,
            local_epochs=self.local_epochs,
            batch_size=self.batch_size,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
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
