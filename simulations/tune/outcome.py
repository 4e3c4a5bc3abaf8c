"""What a search has come to: its trials, the best of them, and the files that say so."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w

from common.config import Config
from common.files import write_atomic
from simulations.tune.space import Space, edges_of, with_values

__all__ = ["State", "Trial", "Tuned", "write_outcome"]

State = Literal["finished", "pruned", "failed"]


@dataclass(frozen=True)
class Trial:
    """One training run of a search.

    Attributes:
        number: from 0 on; 0 is the experiment's own settings.
        values: by key; of trial 0 none where the experiment lies beyond the space.
        state: pruned: ended early, for it did worse than others; failed: it gave no head.
        accuracy: on the held-out images, of the last round it had; 0 where it had none.
        loss: likewise, the mean cross-entropy.
        examples: held-out images.
        rounds: how many it had.
        seconds: that it took.
        problem: why it failed.
    """

    number: int
    values: Mapping[str, Any]
    state: State
    accuracy: float = 0.0
    loss: float = math.inf
    examples: int = 0
    rounds: int = 0
    seconds: float = 0.0
    problem: str = ""

    @property
    def has_figures(self) -> bool:
        """Whether it had a round."""
        return self.rounds > 0

    @property
    def row(self) -> dict[str, Any]:
        """All of it but the values; None for a figure that it has not."""
        figures = vars(self) | {"standard_error": self.standard_error}
        if not self.has_figures:
            figures |= dict.fromkeys(("accuracy", "standard_error", "loss"))
        return {name: figure for name, figure in figures.items() if name != "values"}

    @property
    def standard_error(self) -> float:
        """Of the accuracy, by the number of images alone."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / max(self.examples, 1))


@dataclass(frozen=True)
class Tuned:
    """A finished search.

    Attributes:
        trials: all, by number.
        best: the one with the best accuracy, then the smallest loss, then the smallest number.
        edges: of its values, those at an end of a range that could be wider, with that end, by key.
        file: the experiment with its values, for ``fedhead run``.
    """

    trials: tuple[Trial, ...]
    best: Trial
    edges: Mapping[str, float]
    file: Path

    @property
    def own(self) -> Trial:
        """The experiment's own settings."""
        return self.trials[0]

    @property
    def is_sure(self) -> bool:
        """Whether the best is ahead of the experiment's own by more than a standard error.

        Of the difference, as if the two had been tested on different images: they were tested on
        the same ones, which makes it rather too large.
        """
        error = math.hypot(self.best.standard_error, self.own.standard_error)
        return self.best.accuracy - self.own.accuracy > error


def write_outcome(
    trials: Sequence[Trial], config: Config, space: Space, folder: Path
) -> Tuned | None:
    """Write trials.csv and best.toml; None where no trial has finished.

    Args:
        trials: by number.
        config: the experiment.
        space: that was searched.
        folder: of the search.
    """
    write_atomic(folder / "trials.csv", _table(trials, space))
    finished = [trial for trial in trials if trial.state == "finished"]
    if not finished:
        return None
    best = max(finished, key=lambda t: (t.accuracy, -t.loss, -t.number))
    tuned = Tuned(
        trials=tuple(trials),
        best=best,
        edges=edges_of(best.values, config, space),
        file=folder / "best.toml",
    )
    write_atomic(tuned.file, _experiment(with_values(config, best.values), tuned).encode())
    return tuned


def _experiment(config: Config, tuned: Tuned) -> str:
    """What differs from the defaults, as a person writes an experiment."""
    best, own = tuned.best, "failed"
    if tuned.own.state == "finished":
        own = f"{tuned.own.accuracy:.4f}"
    tree = config.model_dump(by_alias=True, exclude_none=True, exclude_defaults=True)
    return (
        f"# Trial {best.number} of {len(tuned.trials)}: accuracy {best.accuracy:.4f} on "
        f"{best.examples} held-out training images\n"
        f"# (standard error {best.standard_error:.4f}); the experiment's own settings: "
        f"{own}.\n{tomli_w.dumps(tree)}"
    )


def _table(trials: Sequence[Trial], space: Space) -> bytes:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    columns = ("number", "state", "accuracy", "loss", "examples", "rounds", "seconds", "problem")
    lines.writerow([*columns, *space])
    for trial in trials:
        row = trial.row
        lines.writerow(
            [*(row[column] for column in columns), *(trial.values.get(key, "") for key in space)]
        )
    return text.getvalue().encode()
