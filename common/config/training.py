"""Sections on training: strategy, clients, rounds, and baselines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator

from common.config.numbers import Count, Fraction, Positive, PositiveOrAuto
from common.data_sources import function_of
from common.errors import ConfigError
from common.schedule import Schedule, ScheduleKind
from common.toml_model import Section
from common.types import WHOLE, LocalTraining, Optimizer

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
    """One of fedhead's strategies, or an import path: module:function of your own, module:Class of
    Flower's."""
    args: dict[str, Any] = Field(default_factory=dict)
    """The strategy's arguments; see fedhead strategies."""
    root: str = ""
    """Folder of your own module; empty: the experiment file's folder or the working folder,
    whichever has the module."""
    init_from: str = ""
    """Run folder to start from: its last head is the first head, and its backbone is used. Rows are
    matched by class name; new classes start at zero."""
    init: Literal["zeros", "fed3r"] = "zeros"
    """The first head: zeros, or with fed3r a ridge head, for which every client sends its
    statistics in a first round."""
    init_temperature: PositiveOrAuto = "auto"
    """Factor on the ridge head of fed3r, so that its softmax gives confident probabilities. "auto":
    estimated from its sums."""
    init_lambda: PositiveOrAuto = "auto"
    """Penalty of the ridge head of fed3r. "auto": cross-validation chooses it."""
    precondition: Literal["none", "gram"] = "none"
    """gram: clients' gradients are multiplied by the inverse of the Gram matrix of all clients'
    data."""
    precondition_lambda: PositiveOrAuto = "auto"
    """Number that is added to the diagonal of that Gram matrix before it is inverted. "auto": the
    penalty that cross-validation chooses for a ridge head."""


class TrainConfig(Section):
    """[train]: rounds, and what a client does in one."""

    rounds: Positive = 50
    """Rounds of federated training."""
    clients_per_round: NumberOrShare = 0
    """Number of clients that a round asks; below 1 a share of all clients, rounded up; 0: every
    client."""
    clients: Annotated[list[int | str], AfterValidator(_clients)] = Field(default_factory=list)
    """The only clients that take part: ids of simulated clients, from 0 on, or names of a
    deployment's devices. Empty: all."""
    lr: PositiveOrAuto = "auto"
    """The clients' learning rate. "auto": the server chooses it from the features of its
    calibration images, before the first round; see common.rates."""
    optimizer: Optimizer = "sgd"
    """The clients' optimizer. Adam and AdamW begin each round with fresh moments and have torch's
    defaults. They need the reference trainer, which is then used."""
    schedule: ScheduleKind = "constant"
    """The learning rate after the warm-up. linear and cosine let it fall; it would be 0 in the
    round after the last. step multiplies it by decay-factor every decay-rounds."""
    warmup_rounds: Count = 0
    """Rounds at the beginning in which the learning rate rises evenly."""
    decay_rounds: Positive = 10
    """Rounds between two falls of the schedule "step"."""
    decay_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Factor by which each of them multiplies the learning rate."""
    local_epochs: Positive = 1
    """Passes of a client over its examples in each round."""
    batch_size: Count = 10
    """Examples per step; 0: all of a client's in one step."""
    momentum: Fraction = 0.0
    """Heavy-ball momentum of SGD."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """L2 penalty; of AdamW, taken off the weights directly."""
    loss: Annotated[str, AfterValidator(_loss)] = CROSS_ENTROPY
    """The loss that clients minimise: cross-entropy, or module:function of your own, in simulations
    only and on the reference trainer."""
    loss_root: str = ""
    """Folder of that module; empty: strategy.root, the experiment file's folder or the working
    folder, whichever has the module."""

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

    def without_steps(self) -> TrainConfig:
        """The same where clients take no steps: nothing says how they would."""
        keys = ("optimizer", "schedule", "warmup_rounds", "loss", "loss_root")
        return self.model_copy(update={key: type(self).model_fields[key].default for key in keys})

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
        return self.peak * self.rates.share(round_number)

    @property
    def peak(self) -> float:
        """The learning rate that the schedule starts from.

        Raises:
            ConfigError: it is "auto" still: a run replaces that before its first round.
        """
        if self.lr == "auto":
            raise ConfigError(['train.lr="auto" has no number before a run begins'])
        return self.lr

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
            batch_size=self.batch_size or WHOLE,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            optimizer=self.optimizer,
        )


class RoundConfig(Section):
    """[round]: when a round closes and what is kept of it."""

    deadline_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """Real seconds within which nodes must answer. For simulated time see [availability]."""
    over_selection: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Share of further clients to ask beyond train.clients-per-round. A round closes once
    train.clients-per-round updates are valid; slower clients are late."""
    quorum: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the wanted clients whose updates must be valid; with fewer, the head stays
    unchanged."""
    max_update_norm: UpdateNorm = 0.0
    """Largest L2 norm of an update; larger ones are refused. "auto": 10 times the median of the
    round's and of the run's first updates. 0: "auto" on a deployment's devices, no bound in a
    simulation. It holds for the update as it is decoded: codec.up = "drive" makes an update about
    25 % longer, eden 6 %, so that a number must leave honest clients that much room."""
    max_examples_per_client: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Largest number of images that a client uses, evenly spread, training and test part together.
    A device that claims more is refused. 0: 1,000 on a deployment's devices, no bound in a
    simulation."""
    keep_checkpoints: Positive = 3
    """Number of rounds whose checkpoints are kept."""


class BaselineConfig(Section):
    """[baseline]: heads without federation on the same features."""

    enabled: bool = True
    """Whether a simulation computes the best linear heads of all clients' images in one place, and
    each client's of its images alone."""
    ridge_lambda: PositiveOrAuto = "auto"
    """Penalty of the ridge head. "auto": chosen by cross-validation from its sums."""
