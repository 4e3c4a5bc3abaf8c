"""What a comparison consists of, from what stands on the command line."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.config import Config, TrackingConfig, changed, parse_overrides
from common.config.bounds import bounds_of_key
from common.config.loading import with_module
from common.data_sources import function_of
from common.keys import merged
from common.own_code import file_of, found_in
from server.round.first_head import last_head
from server.round.stock import is_stock
from server.strategies import (
    argument_bounds,
    argument_names,
    build_strategy,
    import_strategy,
    strategy_factory,
    trains_by_gradients,
)
from simulations.compare.packing import Packing, private_keys

__all__ = ["VARIANTS", "Cell", "ComparisonSpec", "StrategySpec"]

# What +NAME behind a strategy sets.
VARIANTS = {"gram": {"precondition": "gram"}, "fed3r": {"init": "fed3r"}}

Tree = Mapping[str, Any]

_OWN = Packing()


@dataclass(frozen=True)
class StrategySpec:
    """A strategy as named on the command line: NAME or module:function, then +gram or +fed3r.

    Attributes:
        text: as it was named.
        name: of the strategy, or its import path.
        variants: "gram" preconditions the clients' gradients, "fed3r" starts from its head.
    """

    text: str
    name: str
    variants: tuple[str, ...]

    @property
    def keys(self) -> Tree:
        """What it sets in [strategy]."""
        keys: dict[str, Any] = {"name": self.name}
        for variant in self.variants:
            keys |= VARIANTS[variant]
        return keys

    @property
    def has_gradients(self) -> bool:
        """Whether clients run SGD, so that [train] matters."""
        return is_stock(self.name) or trains_by_gradients(build_strategy(self.name))

    @property
    def arguments(self) -> tuple[str, ...]:
        """Names that [strategy.args] may hold, kebab-case."""
        return tuple(argument_names(self._factory))

    @property
    def defaults(self) -> Tree:
        """Those of them that need not be given, with what they are then."""
        parameters = inspect.signature(self._factory).parameters.values()
        given = {
            p.name.replace("_", "-"): p.default for p in parameters if p.default is not p.empty
        }
        return {name: given[name] for name in self.arguments if name in given}

    def bounds(self, key: str) -> set[float]:
        """The smallest and largest values that a dotted key of the experiment can have."""
        argument = key.removeprefix("strategy.args.")
        if argument == key:
            return bounds_of_key(key)
        if is_stock(self.name):
            return set()
        return argument_bounds(self.name, self._factory).get(argument, set())

    @property
    def _factory(self) -> Callable[..., object]:
        return import_strategy(self.name) if is_stock(self.name) else strategy_factory(self.name)


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Attributes:
        strategy: as named.
        partition: as named.
        seed: of the run.
        settings: what was swept, "key=value" each.
        config: all of it, without a run folder.
        key: names its folder: readable, then a hash of all that its figures depend on.
        packing: its codec, projection and privacy budget.
    """

    strategy: str
    partition: str
    seed: int
    settings: tuple[str, ...]
    config: Config
    key: str
    packing: Packing = _OWN


@dataclass(frozen=True)
class ComparisonSpec:
    """Strategies by codecs, projections and privacy budgets, by partitions, by seeds.

    Attributes:
        base: the experiment that all cells vary.
        strategies: one spec each.
        partitions: as named, with what each sets in [partition].
        seeds: at least one.
        sweeps: by strategy, all combinations of swept settings; one, empty or fixed, where
            nothing is swept.
        validation_fraction: of the training images, to choose between those combinations.
        packings: codecs by projections by budgets; one, the experiment's own, where none of these
            is compared.
        left_out: of these what a strategy does not tolerate, by its text: with the reason.
        given: dotted keys that somebody set for these runs, so that privacy's rule does not.
    """

    base: Config
    strategies: tuple[StrategySpec, ...]
    partitions: tuple[tuple[str, Tree], ...]
    seeds: tuple[int, ...]
    sweeps: Mapping[str, tuple[tuple[str, ...], ...]]
    validation_fraction: float
    packings: tuple[Packing, ...] = (_OWN,)
    left_out: Mapping[str, Mapping[Packing, str]] = field(default_factory=dict)
    given: frozenset[str] = frozenset()

    @property
    def pairs(self) -> tuple[tuple[StrategySpec, Packing], ...]:
        """Each strategy with each packing that it tolerates, in the order of the tables."""
        return tuple(
            (spec, packing)
            for spec in self.strategies
            for packing in self.packings
            if packing not in self.left_out.get(spec.text, {})
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """A line for each strategy and reason: what is not compared because of it."""
        lines = []
        for text, refused in self.left_out.items():
            for reason in dict.fromkeys(refused.values()):
                packings = [packing for packing, why in refused.items() if why == reason]
                names = ", ".join(" · ".join((text, *words)) for words in self._named(packings))
                lines.append(f"Left out: {names}: {reason}")
        return tuple(lines)

    def _named(self, packings: Sequence[Packing]) -> Iterator[tuple[str, ...]]:
        """Words for them: of a codec that is left out with all projections its name alone."""
        for codec in dict.fromkeys(packing.codec for packing in packings):
            own = [packing for packing in packings if packing.codec == codec]
            every = [packing for packing in self.packings if packing.codec == codec]
            yield from [(codec,)] if codec and own == every else [one.words for one in own]

    @property
    def swept(self) -> tuple[str, ...]:
        """Keys of the experiment that are swept for some strategy, dotted."""
        settings = (setting for rows in self.sweeps.values() for row in rows for setting in row)
        return tuple(dict.fromkeys(setting.partition("=")[0] for setting in settings))

    def prepared(self, packing: Packing) -> Config:
        """The experiment with all that decides which features a packing's cells have."""
        ruled = private_keys(self.base, packing.epsilon, has_gradients=True, given=self.given)
        return changed(self.base, merged(ruled, packing.keys))

    def cell(
        self,
        spec: StrategySpec,
        partition: tuple[str, Tree],
        seed: int,
        settings: tuple[str, ...],
        packing: Packing = _OWN,
    ) -> Cell:
        """One run of the comparison, as it is reported.

        Raises:
            ConfigError: a setting does not fit.
        """
        return _cell(self, self.base, spec, partition, seed, settings, packing)

    def sweep_cell(
        self,
        spec: StrategySpec,
        partition: tuple[str, Tree],
        settings: tuple[str, ...],
        packing: Packing = _OWN,
    ) -> Cell:
        """The same on the first seed with some of the training images in place of the test set.

        Raises:
            ConfigError: a setting does not fit.
        """
        held_out = {
            "data": {"validation-fraction": self.validation_fraction},
            "baseline": {"enabled": False},
        }
        base = changed(self.base, held_out)
        return _cell(self, base, spec, partition, self.seeds[0], settings, packing)


def _cell(
    made: ComparisonSpec,
    base: Config,
    spec: StrategySpec,
    partition: tuple[str, Tree],
    seed: int,
    settings: tuple[str, ...],
    packing: Packing,
) -> Cell:
    # The experiment's own arguments are meant for its own strategy.
    if not spec.has_gradients:  # whose clients take no steps
        base = base.model_copy(update={"train": base.train.without_steps()})
    if spec.name != base.strategy.name:
        without = base.strategy.model_copy(update={"args": {}})
        base = base.model_copy(update={"strategy": without})
    base = base.model_copy(update={"tracking": TrackingConfig()})  # a cell has no trackers
    ruled = private_keys(base, packing.epsilon, has_gradients=spec.has_gradients, given=made.given)
    overrides = {"seed": seed, "out": "", "strategy": spec.keys, "partition": partition[1]}
    keys = merged(merged(ruled, overrides), packing.keys)
    config = changed(changed(base, keys), parse_overrides(settings))
    # A process that runs the cell must find the same module, and find it written there.
    config = with_module(config, [Path.cwd()])
    words = (spec.text, partition[0], *packing.words, f"seed-{seed}")
    label = ",".join(word for word in words if word)
    start = _first_head(config.strategy.init_from)
    own = _source(spec.name) + "".join(
        _function_source(source, root)
        for source, root in (
            (config.data.source, config.data.root),
            (config.train.loss, config.train.loss_root),
        )
    )
    content = f"{version('fedhead')}\n{own}{start}\n{config.to_toml()}"
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    key = f"{re.sub(r'[^A-Za-z0-9.+,-]', '-', label)}-{digest}"
    return Cell(spec.text, partition[0], seed, settings, config, key, packing)


def _first_head(run: str) -> str:
    """Hash of the head that a cell starts from; empty: zeros."""
    return last_head(Path(run).expanduser()).sha256 if run else ""


def _source(name: str) -> str:
    """Hash of the file that holds a user's own strategy: what it gives depends on it."""
    if ":" not in name:
        return ""
    file = inspect.getsourcefile(import_strategy(name))
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""


def _function_source(source: str, root: str) -> str:
    """Likewise, of the file that holds a user's own data, or loss."""
    function = function_of(source)
    if function is None:
        return ""
    file = file_of(found_in(*function, Path(root) if root else None))
    return hashlib.sha256(file.read_bytes()).hexdigest()
