"""Searches for settings: ``fedhead tune`` as a call.

``tune`` takes more than seven arguments: they are the options of the command.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any  # a value of a setting is a number, a text, true or false

from fedhead.api.bar import Bar, bar
from fedhead.api.experiments import Experiment, Overrides, configuration, plain
from fedhead.api.frames import Table, table
from fedhead.api.session import session

if TYPE_CHECKING:
    from collections.abc import Callable

    from common.config import Config
    from simulations.tune import Trial
    from simulations.tune import Tuned as Found
    from simulations.tune.space import Space

__all__ = ["Tuned", "tune"]


@dataclass(frozen=True)
class Tuned:
    """A finished search.

    Attributes:
        path: the search's folder, absolute.
        found: its trials and what came of them.
    """

    path: Path
    found: Found

    @property
    def best(self) -> Mapping[str, Any]:
        """The best settings by key, as overrides of the experiment."""
        return dict(self.found.best.values)

    @property
    def accuracy(self) -> float:
        """With them, on the held-out training images."""
        return self.found.best.accuracy

    @property
    def standard_error(self) -> float:
        """Of that accuracy, by the number of those images."""
        return self.found.best.standard_error

    @property
    def is_sure(self) -> bool:
        """Whether it is ahead of the experiment's own settings by more than a standard error."""
        return self.found.is_sure

    @property
    def table(self) -> Table:
        """A row for each trial: state, figures and settings; trial 0 has the experiment's own.

        A ``pandas.DataFrame`` where pandas is installed, else a list of dicts.
        """
        return table([{**trial.row, **trial.values} for trial in self.found.trials], "number")

    @property
    def file(self) -> Path:
        """The experiment with the best settings, best.toml; ``fedhead.run`` takes it."""
        return self.found.file

    def __repr__(self) -> str:
        trials = len(self.found.trials)
        return f"<fedhead.Tuned {self.path}: {trials} trials, best accuracy {self.accuracy:.4f}>"


def tune(
    experiment: Experiment = "mnist5k",
    overrides: Overrides | None = None,
    *,
    space: str | Path | Mapping[str, Any] | None = None,
    trials: int = 30,
    validation_fraction: float = 0.2,
    out: str | Path | None = None,
    progress: bool = True,
) -> Tuned:
    """Search for the settings that do best on held-out training images.

    Example::

        tuned = fedhead.tune("mnist5k", space={"train.lr": {"low": 0.01, "high": 0.5, "log": True}})
        fedhead.run("mnist5k", tuned.best)

    Runs that do worse than others end early. The same call goes on after an interrupt; one with
    more trials makes the search longer.

    Args:
        experiment: as of :func:`fedhead.run`.
        overrides: likewise.
        space: what is searched: a mapping with a range or a list of choices for each key, or the
            path of a TOML file that has it; None: learning rate, local epochs, batch size,
            momentum and the strategy's own numbers.
        trials: how many runs, those before an interrupt included.
        validation_fraction: of the training images, to judge by.
        out: the search's folder; None: runs/NAME-tune.
        progress: show a bar in a notebook or on a terminal.

    Raises:
        ConfigError: all problems of the experiment, or of the space, at once.
        MissingExtraError: Optuna is not installed.
        RunError: the folder holds something else, or no trial gave a head.
    """
    with session(), bar(wanted=progress) as shown:
        from simulations.tune import tune as search

        base = configuration(experiment, overrides)
        folder = Path(out or Path("runs") / f"{base.name}-tune").expanduser().resolve()
        shown.show("preparing", 0, 0)
        try:
            found = search(
                base,
                _space(space, base),
                folder,
                trials=trials,
                validation_fraction=validation_fraction,
                on_trial=_shower(shown, trials),
            )
        except KeyboardInterrupt as exc:
            exc.add_note("interrupted; the same call goes on")
            raise
    return Tuned(folder, found)


def _space(space: str | Path | Mapping[str, Any] | None, base: Config) -> Space:
    from simulations.tune import read_space, space_of

    if isinstance(space, Mapping):
        return read_space(plain(space), base)
    return space_of(None if space is None else Path(space).expanduser(), base)


def _shower(shown: Bar, trials: int) -> Callable[[Trial], None]:
    best = 0.0

    def show(trial: Trial) -> None:
        nonlocal best
        best = max(best, trial.accuracy if trial.state == "finished" else 0.0)
        words = f"trial {trial.number + 1} of {trials}, best accuracy {100 * best:.1f} %"
        shown.show(words, trial.number + 1, trials)

    return show
