"""Finds every setting of a comparison that does not fit, before anything runs."""

from __future__ import annotations

from dataclasses import replace

from common.config import Config
from common.errors import ConfigError
from simulations.compare.cells import ComparisonSpec, StrategySpec
from simulations.compare.packing import Packing

__all__ = ["checked"]


def checked(comparison: ComparisonSpec) -> ComparisonSpec:
    """The same without the packings that some strategies do not tolerate.

    Raises:
        ConfigError: with all problems: settings that do not fit, and strategies that no packing
            is left for.
    """
    problems, left_out = list[str](), dict[str, dict[Packing, str]]()
    for spec in comparison.strategies:
        found = {packing: _problems(comparison, spec, packing) for packing in comparison.packings}
        if all(found.values()):
            problems += [f"{spec.text}: {problem}" for each in found.values() for problem in each]
        elif refused := {packing: "; ".join(each) for packing, each in found.items() if each}:
            left_out[spec.text] = refused
    for partition in comparison.partitions:
        try:
            comparison.cell(comparison.strategies[0], partition, comparison.seeds[0], ())
        except ConfigError as exc:
            problems += [f"{partition[0]}: {problem}" for problem in exc.problems]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return replace(comparison, left_out=left_out)


def _problems(comparison: ComparisonSpec, spec: StrategySpec, packing: Packing) -> list[str]:
    problems, (first, *_) = list[str](), comparison.partitions
    for settings in comparison.sweeps[spec.text]:
        try:
            cell = comparison.cell(spec, first, comparison.seeds[0], settings, packing)
            _check_strategy(cell.config)
        except ConfigError as exc:
            problems += exc.problems
    return list(dict.fromkeys(problems))


def _check_strategy(config: Config) -> None:
    from server.round.build import check_strategy

    check_strategy(config)
