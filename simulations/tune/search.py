"""The search as one call: checks what is to be searched, runs the trials, writes the outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.config import Config, TrackingConfig, changed
from common.errors import ConfigError, MissingExtraError, RunError
from common.files import is_empty
from common.readback import JsonFile
from simulations.deploy.processes import alone
from simulations.tune.outcome import Trial, Tuned, write_outcome
from simulations.tune.reading import read_space
from simulations.tune.space import Space
from simulations.tune.study import Study

__all__ = ["tie", "tune"]

_SEARCH = JsonFile("search.json of a search", indent=1)


def tune(
    config: Config,
    space: Space | Mapping[str, Any],
    folder: Path,
    *,
    trials: int = 30,
    validation_fraction: float = 0.2,
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> Tuned:
    """Search for the settings that do best on held-out training images, never the test set.

    The same call goes on with a search that was cut off, or makes it longer: the same settings
    are tried as without the cut. Trial 0 is the experiment as it is.

    Args:
        config: the experiment.
        space: what is searched, see ``simulations.tune.reading``.
        folder: of the search; it gets study.db (Optuna's, for its dashboard), trials/ with a
            run folder each, trials.csv, and best.toml.
        trials: how many there are to be, those before a cut included.
        validation_fraction: of the training images, to judge by.
        on_trial: is told of each trial that has ended.

    Raises:
        ConfigError: the space does not fit the experiment.
        MissingExtraError: Optuna is not installed.
        RunError: the folder holds something else, or no trial gave a head.
    """
    if find_spec("optuna") is None:
        raise MissingExtraError("optuna", "tune", "a search")
    checked = read_space(space, config)
    base = _judged(config, validation_fraction)
    if not is_empty(folder) and not (folder / "search.json").exists():
        raise RunError(f"{folder} is not empty and holds no search, choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder, "fedhead tune"):
        tie(folder, base, checked)
        found = Study(base, checked, folder).run(trials, on_trial)
        tuned = write_outcome(found, config, checked, folder)
    if tuned is None:
        raise RunError(f"none of {len(found)} trials gave a head: {found[0].problem}")
    return tuned


def _judged(config: Config, validation_fraction: float) -> Config:
    """The experiment with some of its training images in the test set's place."""
    if not 0 < validation_fraction < 1:
        raise ConfigError([f"validation fraction {validation_fraction} must be between 0 and 1"])
    held_out = {
        "out": "",
        "data": {"validation-fraction": validation_fraction},
        "baseline": {"enabled": False},
    }
    return changed(config, held_out).model_copy(update={"tracking": TrackingConfig()})


def tie(folder: Path, base: Config, space: Space) -> None:
    """Keep what is searched in the folder, or see that it is still the same.

    Raises:
        RunError: the folder holds another search.
        DamagedError: its file has changed.
    """
    facts = {
        "experiment": base.model_dump(mode="json", by_alias=True),
        "space": {key: repr(dimension) for key, dimension in space.items()},
    }
    file = folder / "search.json"
    if not file.exists():
        _SEARCH.write(file, facts)
    elif (known := _SEARCH.read(file)) != facts:
        other = "experiment" if known["experiment"] != facts["experiment"] else "space"
        raise RunError(f"{folder} holds a search with another {other}, choose another folder")
