"""The trials one after the other, each a run that ends early where others did better."""

from __future__ import annotations

import logging
import math
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config import Config
from common.errors import FedheadError, RunError
from common.progress import stage
from server.record.progress import OnRound
from simulations.run import run_cell
from simulations.tune.outcome import State, Trial
from simulations.tune.space import (
    ARGS,
    NAME,
    Choices,
    Range,
    Space,
    own_values,
    strategy_of,
    with_values,
)

if TYPE_CHECKING:
    import optuna

__all__ = ["Study"]

logger = logging.getLogger("fedhead")

_FILE, _TRIALS = "study.db", "trials"
_LOOKS = 20  # at a run, to see whether it can end
_RANDOM = 8  # trials before the sampler and the pruner know enough
# Percent that go on. Curves of few clients a round are rough: of 30 trials on mnist5k that had all
# ran to the end, the median would have cut three of the best eight short, this none of them.
_GO_ON = 75.0
_WARMUP = 0.2  # of a run's rounds, in which nothing can be said of it


class Study:
    """Trials in a folder, in Optuna's study.

    Args:
        base: the experiment, with held-out images in the test set's place.
        space: that is searched.
        folder: of the search.

    Raises:
        RunError: study.db is damaged, or missing though there are trials.
    """

    def __init__(self, base: Config, space: Space, folder: Path) -> None:
        import optuna

        file = folder / _FILE
        if not file.exists() and (folder / _TRIALS).exists():
            raise RunError(f"{file} is missing, though there are trials: choose another folder")
        self._base, self._space, self._folder = base, space, folder
        self._own = own_values(base, space)
        rounds = base.train.rounds
        self._every = max(1, rounds // _LOOKS)
        with _quiet_optuna(), _readable(file):
            # Not by its address: a folder's name may hold what means something in one.
            from sqlalchemy.pool import NullPool

            storage = optuna.storages.RDBStorage(
                f"sqlite:///{_FILE}",
                engine_kwargs={
                    "creator": lambda: sqlite3.connect(file, check_same_thread=False),
                    "poolclass": NullPool,
                },
            )
            self._study = optuna.create_study(
                study_name="fedhead",
                storage=storage,
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.PercentilePruner(
                    _GO_ON, n_startup_trials=_RANDOM, n_warmup_steps=round(_WARMUP * rounds)
                ),
            )

    def run(self, trials: int, on_trial: Callable[[Trial], None]) -> list[Trial]:
        """Run those that are missing; all, by number."""
        import optuna

        with _quiet_optuna(), _readable(self._folder / _FILE):
            for trial in self._study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
                # A process that was killed was at it; the same settings are tried again.
                self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            found = self._finished()
        with _quiet_optuna():
            for number in range(len(found), trials):
                with stage(f"trial {number + 1}/{trials}"):
                    found.append(self._next(number))
                _report(found, trials)
                on_trial(found[-1])
        return found

    def _finished(self) -> list[Trial]:
        return [
            Trial(values=trial.user_attrs["values"], **trial.user_attrs["outcome"])
            for trial in self._study.get_trials(deepcopy=False)
            if trial.state.name in ("COMPLETE", "PRUNED")
        ]

    def _next(self, number: int) -> Trial:
        """Ask for settings, run them and tell the study."""
        import optuna

        # A sampler for each trial, so that a cut changes nothing of what is tried.
        seed = (self._base.seed * 1_000_003 + number) % 2**32
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_RANDOM)
        if number == 0 and self._own is not None:
            self._study.enqueue_trial(dict(self._own))
        asked = self._study.ask()
        is_own_beyond = number == 0 and self._own is None
        values = {} if is_own_beyond else _suggested(asked, self._space, self._base)
        trial, score = self._tried(asked, number, values)
        outcome = {k: v for k, v in vars(trial).items() if k != "values"}
        asked.set_user_attr("values", values)
        asked.set_user_attr("outcome", outcome)
        if trial.state == "finished":
            self._study.tell(asked, score)
        else:
            self._study.tell(asked, state=optuna.trial.TrialState.PRUNED)
        return trial

    def _tried(
        self, asked: optuna.Trial, number: int, values: Mapping[str, Any]
    ) -> tuple[Trial, float]:
        """Run one trial; its figures, and the score that Optuna compares."""
        import optuna

        started, line = time.perf_counter(), dict[str, Any]()

        def on_round(metrics: Mapping[str, Any]) -> None:
            line.update(metrics)
            done = metrics["round"]
            if done % self._every == 0 and done < self._base.train.rounds:
                asked.report(_score(metrics), done)
                # The experiment's own settings are what all others are compared with.
                if number and asked.should_prune():
                    raise optuna.TrialPruned

        state: State = "finished"
        problem = ""
        try:
            self._run(number, values, on_round)
        except optuna.TrialPruned:
            state = "pruned"
        except FedheadError as exc:
            state, problem = "failed", str(exc)
        except Exception as exc:  # whatever a user's own code raises, at these settings alone
            words = (str(exc).splitlines() or [""])[0]
            state, problem = "failed", f"{type(exc).__name__}: {words}"
        seconds = round(time.perf_counter() - started, 1)
        figures = _figures(line) if line else {}
        trial = Trial(number, values, state, seconds=seconds, problem=problem, **figures)
        return trial, _score(line) if line else 0.0

    def _run(self, number: int, values: Mapping[str, Any], on_round: OnRound) -> None:
        from server.round.build import check_strategy

        path = self._folder / _TRIALS / f"{number:03d}"
        shutil.rmtree(path, ignore_errors=True)  # of a process that was killed
        path.parent.mkdir(exist_ok=True)
        config = with_values(self._base, values)
        check_strategy(config)
        with _warnings_alone():
            run_cell(path, config.to_toml(), on_round=on_round)


def _suggested(asked: optuna.Trial, space: Space, base: Config) -> dict[str, Any]:
    """Optuna's next values; arguments only of the strategy that has them."""
    values: dict[str, Any] = {}
    arguments = strategy_of(base.strategy.name).arguments
    for key, dimension in space.items():
        if key.startswith(ARGS) and key.removeprefix(ARGS) not in arguments:
            continue
        values[key] = _one(asked, key, dimension)
        if key == NAME:
            arguments = strategy_of(values[key]).arguments
    return values


def _one(asked: optuna.Trial, key: str, dimension: Range | Choices) -> Any:
    if isinstance(dimension, Choices):
        return asked.suggest_categorical(key, dimension.values)
    low, high, step = dimension.low, dimension.high, dimension.step
    if dimension.is_whole:
        return asked.suggest_int(key, int(low), int(high), step=int(step or 1), log=dimension.log)
    value = asked.suggest_float(key, low, high, step=step, log=dimension.log)
    return value if step else min(max(_short(value, dimension), low), high)


def _short(value: float, within: Range) -> float:
    """As a person would write it: nothing depends on the fifth digit, of it or of its range.

    >>> _short(0.123456, Range(0.0, 1.0)), _short(0.9999345678, Range(0.9999, 1.0))
    (0.1235, 0.99993457)
    """
    length = within.high - within.low
    if within.log:
        length = value * math.log(within.high / within.low)
    sizes = [size for size in (abs(value), length) if size]
    return round(value, max(3 - math.floor(math.log10(size)) for size in sizes))


def _figures(line: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "accuracy": line["accuracy"],
        "loss": line["loss"],
        "examples": line["test-examples"],
        "rounds": line["round"],
    }


def _score(line: Mapping[str, Any]) -> float:
    """Accuracy, then loss, as one number: the loss never outweighs a single image.

    >>> a, b = ({"accuracy": 0.5, "loss": x, "test-examples": 2} for x in (1.0, 3.0))
    >>> _score(a), _score(b)
    (0.75, 0.625)
    """
    return float(line["accuracy"] + 1 / (1 + line["loss"]) / line["test-examples"])


def _report(found: list[Trial], trials: int) -> None:
    last = found[-1]
    best = max(
        (trial.accuracy for trial in found if trial.state == "finished"), default=last.accuracy
    )
    settings = "  ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}"
        for key, value in last.values.items()
    )
    end = {"finished": "", "pruned": f"  ended after round {last.rounds}"}.get(
        last.state, "  failed"
    )
    logger.info(
        "trial %d/%d  accuracy %.4f  best %.4f%s  %s",
        last.number + 1, trials, last.accuracy, best, end, settings or "the experiment's own",
    )  # fmt: skip


@contextmanager
def _warnings_alone() -> Iterator[None]:
    """A trial's own rounds are not worth a line each; other threads may have runs of their own."""
    thread = threading.get_ident()

    def passes(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.thread != thread

    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """The search has lines of its own."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Say in a line that Optuna's file is not what Optuna and this module wrote."""
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, KeyError, TypeError) as exc:
        words = (str(exc).splitlines() or [""])[0]
        raise RunError(f"{file} is damaged ({words}): choose another folder") from exc
