"""Runs put side by side: settings, the strategies compared in each, their runs over seeds.

A *setting* is what a strategy cannot choose: data, partition, backbone, who is present, who
attacks. An *entry* is one strategy with its own training settings; its runs differ in the seed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from common.config.privacy import rule_keys
from common.errors import RunError
from simulations.report.labels import (
    NOT_COMPARED,
    compared_values,
    differing,
    distinct,
    hyperparameters,
    is_setting,
    setting_label,
    strategy_label,
)
from simulations.report.packing import (
    EPSILON,
    SIZE_KEYS,
    PackingLabels,
    beyond_rule,
    compared_keys,
    packed,
    packing_labels,
    without_rule,
)
from simulations.report.runs import Run, read_runs

__all__ = ["Comparison", "Entry", "Setting", "load_runs"]

logger = logging.getLogger("fedhead")

Values = Mapping[str, Any]
G = TypeVar("G")


@dataclass(frozen=True, eq=False)
class Entry:
    """One strategy in one setting.

    Attributes:
        label: unique in its setting; names what of its packing is compared.
        strategy: the same without that.
        packing: codec, projection and privacy budget.
        hyperparameters: learning rate and what else was set or swept, compact.
        runs: ascending by seed, one each.
    """

    label: str
    strategy: str
    packing: PackingLabels
    hyperparameters: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def accuracies(self) -> tuple[float, ...]:
        """Final accuracy of each run, in [0, 1]."""
        return tuple(float(run.accuracy[-1]) for run in self.runs)


@dataclass(frozen=True, eq=False)
class Setting:
    """What all its entries have in common; entries are sorted, highest mean accuracy first."""

    label: str
    entries: tuple[Entry, ...]

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for entry in self.entries for run in entry.runs)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.runs[0].classes


@dataclass(frozen=True, eq=False)
class Comparison:
    """All that a report shows.

    Attributes:
        settings: in the order of their labels, or as asked.
        notes: what a reader must know before comparing: left-out runs, unequal seeds or features.
        asked: the folders of the runs in the order in which somebody asked for them, which tables
            keep; empty: they list the best first.
    """

    settings: tuple[Setting, ...]
    notes: tuple[str, ...]
    asked: tuple[str, ...] = ()

    def in_order(self, setting: Setting) -> list[Entry]:
        """Its entries as tables list them: as asked, or the best first."""
        entries = list(setting.entries)
        if not self.asked:
            return entries
        place = {folder: i for i, folder in enumerate(self.asked)}
        return sorted(entries, key=lambda e: min(place[str(run.path)] for run in e.runs))

    @property
    def runs(self) -> tuple[Run, ...]:
        return tuple(run for setting in self.settings for run in setting.runs)

    @property
    def axes(self) -> tuple[str, ...]:
        """Which keys of packings are compared."""
        return compared_keys(entry.packing for s in self.settings for entry in s.entries)

    @property
    def packed(self) -> bool:
        """Whether codecs or projections are compared."""
        return bool({*self.axes} & {*SIZE_KEYS})

    @property
    def budgeted(self) -> bool:
        """Whether privacy budgets are compared."""
        return EPSILON in self.axes

    @property
    def alone(self) -> bool:
        """Whether there is one strategy in one setting, so that nothing is compared."""
        return len(self.settings) == 1 and len(self.settings[0].entries) == 1

    @property
    def strategies(self) -> list[str]:
        """Labels of all entries, as asked, or those with the best ranks in their settings first."""
        if self.asked:
            entries = (entry for setting in self.settings for entry in self.in_order(setting))
            return list(dict.fromkeys(entry.label for entry in entries))
        ranks: dict[str, list[float]] = {}
        for setting in self.settings:
            for rank, entry in enumerate(setting.entries):
                ranks.setdefault(entry.label, []).append(rank / len(setting.entries))
        return sorted(ranks, key=lambda label: (float(np.mean(ranks[label])), label))


def load_runs(
    paths: Sequence[Path], *, as_asked: bool = False, swept: Sequence[str] = ()
) -> Comparison:
    """Read finished runs and put them side by side.

    Args:
        paths: run folders, or folders that hold run folders somewhere below. Unfinished runs
            are left out with a warning, and so are a sweep's beside others, and of two runs of
            one configuration and seed the second.
        as_asked: whether tables list settings and strategies in the order of the runs; else
            settings by their labels and the best strategies first.
        swept: keys that were swept, always among the hyperparameters; so is what differs among
            the left-out runs of a sweep.

    Raises:
        RunError: nothing is finished, a file is damaged, or runs of one setting have other
            classes.
        ConfigError: a run's config.toml cannot be read.
    """
    runs, unfinished = read_runs(paths)
    notes = [f"{path} has not finished and is left out." for path in unfinished]
    runs, tried = _without_sweeps(runs)
    if tried:
        notes.append(f"{len(tried)} runs of a sweep, on held-out training images, are left out.")
    runs, repeated = _without_repeats(runs)
    notes += [f"{path} repeats {first} and is left out." for path, first in repeated]
    settings = _settings(runs, {*swept, *_swept(tried)})
    for setting in settings:
        notes += _unequal(setting)
    if len({tuple(run.summary.versions.items()) for run in runs}) > 1:
        notes.append("The runs were made with different versions, listed at the end.")
    if as_asked:
        return Comparison(settings, tuple(notes), tuple(str(run.path) for run in runs))
    return Comparison(tuple(sorted(settings, key=lambda s: s.label)), tuple(notes))


def _key(values: Values, belongs: Callable[[str], bool]) -> str:
    return json.dumps({key: value for key, value in values.items() if belongs(key)}, sort_keys=True)


def _entry_key(run: Run) -> str:
    return _key(compared_values(run), lambda key: key not in NOT_COMPARED)


def _groups(runs: Iterable[Run], key: Callable[[Run], str]) -> list[list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return list(groups.values())


def _without_sweeps(runs: list[Run]) -> tuple[list[Run], list[Run]]:
    """Runs on the test set and the others; all runs if none is on the test set."""
    tested = [run for run in runs if not run.values["data.validation-fraction"]]
    others = [run for run in runs if run.values["data.validation-fraction"]]
    return (tested, others) if tested else (runs, [])


def _swept(tried: Sequence[Run]) -> set[str]:
    """Keys in which a sweep's runs of one strategy differ."""
    groups = _groups(tried, lambda run: strategy_label(run.values))
    return {key for group in groups for key in differing([run.values for run in group])}


def _without_repeats(runs: Sequence[Run]) -> tuple[list[Run], list[tuple[Path, Path]]]:
    kept: dict[tuple[str, int], Run] = {}
    repeated = []
    for run in runs:
        first = kept.setdefault((_entry_key(run), run.seed), run)
        if first is not run:
            repeated.append((run.path, first.path))
            logger.warning("%s repeats %s, left out", run.path, first.path)
    return list(kept.values()), repeated


def _settings(runs: Sequence[Run], swept: Collection[str]) -> tuple[Setting, ...]:
    axes = compared_keys(packing_labels(compared_values(run)) for run in runs)
    # Privacy's rule has some of the setting its own way, which is part of what a budget costs.
    ruled = rule_keys("everyone") if EPSILON in axes else ()

    def belongs(key: str) -> bool:
        return is_setting(key) and key not in ruled

    groups = _groups(runs, lambda run: _key(compared_values(run), belongs))
    of_setting = [
        {key: value for key, value in compared_values(group[0]).items() if belongs(key)}
        for group in groups
    ]
    labels = distinct([setting_label(values, of_setting) for values in of_setting], of_setting)
    return tuple(
        Setting(label, _entries(group, label, swept, axes, belongs))
        for label, group in zip(labels, groups, strict=True)
    )


def _entries(
    runs: Sequence[Run],
    setting: str,
    swept: Collection[str],
    axes: Collection[str],
    belongs: Callable[[str], bool],
) -> tuple[Entry, ...]:
    if len({run.classes for run in runs}) > 1:
        other = next(run for run in runs if run.classes != runs[0].classes)
        raise RunError(f"{other.path} has other classes than {runs[0].path}, both are {setting}")
    groups = _groups(runs, _entry_key)
    values = [compared_values(group[0]) for group in groups]
    own = [
        {key: v for key, v in one.items() if key not in NOT_COMPARED and not belongs(key)}
        for one in values
    ]
    names = [strategy_label(one) for one in own]
    plain = [packed(name, one, axes) for name, one in zip(names, own, strict=True)]
    labels, compared = distinct(plain, own), without_rule(own)
    entries = [
        Entry(
            label,
            name + label.removeprefix(short),
            packing_labels(one),
            hyperparameters(beyond_rule(one), compared, swept),
            tuple(sorted(group, key=lambda run: run.seed)),
        )
        for label, short, name, one, group in zip(labels, plain, names, own, groups, strict=True)
    ]
    return tuple(sorted(entries, key=lambda e: (-float(np.mean(e.accuracies)), e.label)))


def _unequal(setting: Setting) -> Iterable[str]:
    """Why entries of a setting cannot be compared as they are."""
    seeds = sorted({run.seed for run in setting.runs})
    for seed in seeds:
        lacking = [entry.label for entry in setting.entries if seed not in entry.seeds]
        if lacking:
            yield f"{setting.label}: seed {seed} is missing for {', '.join(lacking)}."
        backbones = {
            (packing_labels(run.values).features, run.summary.fingerprint)
            for run in setting.runs
            if run.seed == seed
        }
        if len(backbones) > len({features for features, _ in backbones}):
            yield (
                f"{setting.label}, seed {seed}: the runs have different backbones, "
                "so their features are not the same."
            )
