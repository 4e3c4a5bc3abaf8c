"""The words of the command line, turned into a comparison; all problems at once.

``parse_comparison`` takes more than seven arguments: they are the options of ``fedhead compare``.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from common.config import PARTITION_KEYS, Config, changed, parse_overrides
from common.errors import ConfigError
from common.own_code import folder_of, search_in
from server.round.stock import is_stock
from server.strategies import STRATEGIES, strategy_factory
from simulations.compare.cells import VARIANTS, ComparisonSpec, StrategySpec
from simulations.compare.check import checked
from simulations.compare.packing import Packing, known_codec, known_epsilon, known_projection

__all__ = ["find_modules", "parse_comparison"]

_Parsed = TypeVar("_Parsed")

_ALL = (*STRATEGIES, *(f"fedavg+{variant}" for variant in VARIANTS))


def find_modules(strategies: str, places: Sequence[Path]) -> None:
    """Let strategies of a user's own be found, as ``run`` finds the one that it has.

    Args:
        strategies: the command line's words.
        places: the experiment's folder, the working folder.
    """
    for word in _words(strategies):
        module, colon, _ = word.partition(":")
        folder = folder_of(module, places) if colon else None
        search_in(str(folder or ""))


def parse_comparison(
    base: Config,
    *,
    strategies: str,
    partitions: str,
    seeds: str,
    sweeps: Sequence[str],
    validation_fraction: float,
    codecs: str = "",
    projections: str = "",
    epsilons: str = "",
    given: Collection[str] = (),
) -> ComparisonSpec:
    """Read the command line's words.

    Args:
        base: the experiment.
        strategies: "fedavg,fedavg+gram,mymodule:mystrategy", or "all".
        partitions: "iid,dirichlet:0.1,pathological:2"; empty: the experiment's own.
        seeds: "0,1,2".
        sweeps: "lr=0.01,0.1", "server-lr=0.1,1", "fedprox.mu=0.01,0.1", "train.momentum=0,0.9":
            the clients' learning rate, an argument of every strategy that has it or of one
            ("signs.step" for "mine:signs"), any key of the experiment.
        validation_fraction: of the training images.
        codecs: "none,drive", of what clients send; empty: the experiment's own. A strategy is
            compared with those that it tolerates.
        projections: "off,auto,255", of the features; empty: the experiment's own.
        epsilons: "1,4,inf", budgets of differential privacy; empty: the experiment's own.
        given: dotted keys that somebody set for all runs, so that privacy's rule leaves them.

    Raises:
        ConfigError: with all problems.
    """
    names = list(_ALL) if strategies == "all" else _words(strategies)
    specs, problems = _each(names, _spec)
    schemes, more = _each(_words(partitions), lambda name: (name, _partition(name)))
    problems = ([] if names else ["--strategies is empty"]) + problems + more
    packings, more = _packings(base, codecs, projections, epsilons)
    problems += more
    numbers = _words(seeds)
    if not numbers or not all(re.fullmatch(r"\d{1,9}", number) for number in numbers):
        problems.append(f"--seeds {seeds!r} must be whole numbers, for example 0,1,2")
    axes, more = _axes(sweeps)
    wrong = (
        _unknown(axes, specs)
        | _twice(axes)
        | _compared(
            axes,
            {"codec.up": codecs, "backbone.projection": projections, "privacy.epsilon": epsilons},
        )
    )
    axes = [axis for axis in axes if axis[0] not in wrong]
    combined = {spec.text: _combinations(spec, specs, axes) for spec in specs}
    used = {setting[0] for rows in combined.values() for row in rows for setting in row}
    problems += [*more, *dict.fromkeys(wrong.values())]
    problems += [f"--sweep {key}: no strategy here has it" for key, _ in axes if key not in used]
    if problems:
        raise ConfigError(problems)
    comparison = ComparisonSpec(
        base=_shared(base),
        strategies=tuple(specs),
        partitions=tuple(schemes) or (("", {}),),
        seeds=tuple(dict.fromkeys(int(number) for number in numbers)),
        sweeps={
            name: tuple(tuple(f"{path}={value}" for _, path, value in row) for row in rows)
            for name, rows in combined.items()
        },
        validation_fraction=validation_fraction,
        packings=packings,
        given=frozenset(given),
    )
    return checked(comparison)


def _each(names: Sequence[str], parse: Callable[[str], _Parsed]) -> tuple[list[_Parsed], list[str]]:
    """What each name means, once, and all problems of those that mean nothing."""
    parsed, problems = list[_Parsed](), list[str]()
    for name in dict.fromkeys(names):
        try:
            parsed.append(parse(name))
        except ConfigError as exc:
            problems += exc.problems
    return parsed, problems


def _packings(
    base: Config, codecs: str, projections: str, epsilons: str
) -> tuple[tuple[Packing, ...], list[str]]:
    """Each codec with each projection and budget, and all problems of those that there are not."""
    parsed = (
        _each(_words(codecs), known_codec),
        _each(_words(projections), partial(known_projection, base)),
        _each(_words(epsilons), known_epsilon),
    )
    combined = itertools.product(*(dict.fromkeys(texts or [""]) for texts, _ in parsed))
    problems = [problem for _, found in parsed for problem in found]
    return tuple(itertools.starmap(Packing, combined)), problems


def _axes(sweeps: Sequence[str]) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """What is swept, by its key as given, with its values; and all problems."""
    axes, problems = list[tuple[str, list[str]]](), list[str]()
    for sweep in sweeps:
        key, _, values = sweep.partition("=")
        if not _words(values):
            problems.append(f"--sweep {sweep!r} is not of the form key=value,value,...")
        axes.append((key.strip(), _words(values)))
    return axes, problems


def _unknown(
    axes: Sequence[tuple[str, list[str]]], specs: Sequence[StrategySpec]
) -> dict[str, str]:
    """Keys that begin with neither a strategy nor a section, each with the problem."""
    known = {*_owners(specs), *Config.model_fields}
    problems = {}
    for key, _ in axes:
        owner = key.rpartition(".")[0]
        if owner and owner not in known and (first := key.partition(".")[0]) not in known:
            near = difflib.get_close_matches(owner, known, n=1)
            hint = f", did you mean {near[0]}?" if near else ""
            problems[key] = f"--sweep {key}: unknown key {first}{hint}"
    return problems


def _twice(axes: Sequence[tuple[str, list[str]]]) -> dict[str, str]:
    """Keys that mean the same as another one, each with the problem."""
    keys: dict[str, list[str]] = {}
    for key, _ in axes:
        meant = "train.lr" if key == "lr" else key.removeprefix("strategy.args.")
        keys.setdefault(meant, []).append(key)
    return {
        key: f"--sweep {' and '.join(dict.fromkeys(same))}: the same key, give all values in one"
        for same in keys.values()
        for key in same
        if len(same) > 1
    }


def _compared(axes: Sequence[tuple[str, list[str]]], compared: Mapping[str, str]) -> dict[str, str]:
    """Keys that are compared, so that none of their values is chosen; each with the problem."""
    return {
        key: f"--sweep {key}: its values are compared, so that none of them is chosen"
        for key, _ in axes
        if _words(compared.get(key, ""))
    }


def _shared(base: Config) -> Config:
    """What all cells have in common: data and backbone."""
    return changed(base, {"data": {"seed": base.data_seed}})


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _spec(text: str) -> StrategySpec:
    name, *variants = text.split("+")
    unknown = [variant for variant in variants if variant not in VARIANTS]
    if unknown:
        raise ConfigError([f"{text}: +{unknown[0]} is unknown (known: +gram, +fed3r)"])
    if not is_stock(name):
        strategy_factory(name)
    return StrategySpec(text, name, tuple(variants))


def _partition(text: str) -> Mapping[str, Any]:
    scheme, _, value = text.partition(":")
    if not value:
        return {"scheme": scheme}
    if scheme not in PARTITION_KEYS:
        raise ConfigError([f"partition {text!r}: {scheme} takes no value"])
    own: Mapping[str, Any] = parse_overrides([f"partition.{PARTITION_KEYS[scheme]}={value}"])
    return {"scheme": scheme, **own["partition"]}


def _combinations(
    spec: StrategySpec, specs: Sequence[StrategySpec], axes: Sequence[tuple[str, list[str]]]
) -> list[tuple[tuple[str, str, str], ...]]:
    """All combinations of what is swept for a strategy: (key as given, config key, value)."""
    chosen: dict[str, tuple[str, list[str]]] = {}
    owners = _owners(specs)
    for key, values in sorted(axes, key=lambda axis: axis[0].rpartition(".")[0] in owners):
        owner, _, rest = key.rpartition(".")
        if owner in owners:
            path = _path(spec, rest) if owners[owner] == spec.text else ""
        else:
            path = _path(spec, key)
        if path:
            chosen[path] = (key, values)  # a strategy's own comes last, and wins
    rows = [[(key, path, value) for value in values] for path, (key, values) in chosen.items()]
    return list(itertools.product(*rows))


def _owners(specs: Sequence[StrategySpec]) -> dict[str, str]:
    """Strategies by what may stand before a swept argument.

    That is how one was named, or the function's name alone where it is nobody else's.
    """
    named = {spec.text: spec.text for spec in specs}
    short: dict[str, list[str]] = {}
    for spec in specs:
        short.setdefault(spec.text.rpartition(":")[2], []).append(spec.text)
    others = {*named, *Config.model_fields}
    return named | {
        name: texts[0] for name, texts in short.items() if len(texts) == 1 and name not in others
    }


def _path(spec: StrategySpec, key: str) -> str:
    """The key of the experiment that a swept name means for this strategy; empty for none."""
    if key == "lr":
        key = "train.lr"
    if "." in key:
        return key if spec.has_gradients or not key.startswith("train.") else ""
    return f"strategy.args.{key}" if key in spec.arguments else ""
