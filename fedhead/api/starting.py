"""How a caller comes by a run: begins one, goes on with one, or loads one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.errors import RunError
from fedhead.api.experiments import Experiment, Overrides, configuration
from fedhead.api.runs import Run
from fedhead.api.session import session
from fedhead.api.working import Listener, Way, begin

__all__ = ["load_run", "resume", "run"]


def run(
    experiment: Experiment = "mnist5k",
    overrides: Overrides | None = None,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    engine: str = "in-process",
    on_round: Listener | Sequence[Listener] = (),
    progress: bool = True,
) -> Run:
    """Run an experiment: train a head over simulated clients, and export the model.

    Example::

        import fedhead

        run = fedhead.run("mnist5k", {"train.rounds": 20})
        run.metrics["accuracy"]
        run.predict("photos/")

    What finished rounds gave lies in the run folder. Whatever ends the run early, an interrupt
    too, ``fedhead.resume(path)`` goes on after the last of them.

    Args:
        experiment: path of a TOML file; the name of a shipped experiment, such as "mnist5k", where
            there is no such file; or a dict as TOML would give it.
        overrides: other values by key: ``{"train.rounds": 20}``, or nested as in TOML.
        out: run folder; None: runs/NAME, or runs/NAME-2 and so on where that is taken.
        overwrite: replace the run in that folder, once the new one has a round.
        engine: "in-process", or "flower": Flower's own simulation on Ray.
        on_round: a function, or several, called with the metrics of each finished round (a mapping
            with "round", "accuracy", ...). ``fedhead.StopRun``, raised in one, makes that round
            the last; anything else that it raises ends the run there and is passed on.
        progress: show a bar in a notebook or on a terminal.

    Returns:
        The finished run.

    Raises:
        ConfigError: no such experiment, or all problems of its keys at once.
        RunError: the run folder is taken, or no round gave a new head.
        FedheadError: whatever else a person can mend, such as DataError; one clear line.
    """
    own = {} if out is None else {"out": str(Path(out).expanduser())}
    way = Way(engine, on_round, progress)
    with session():
        return Run(begin(configuration(experiment, overrides, own), way, overwrite=overwrite))


def resume(
    run: Run | str | Path,
    overrides: Overrides | None = None,
    *,
    engine: str = "in-process",
    on_round: Listener | Sequence[Listener] = (),
    progress: bool = True,
) -> Run:
    """Go on with a run after its last finished round, also where its folder was moved.

    Example::

        longer = fedhead.resume("runs/mnist5k", {"train.rounds": 40})

    Args:
        run: the run, or its folder.
        overrides: other values of the keys that may change, such as "train.rounds" and
            "data.source".
        engine: as of :func:`fedhead.run`.
        on_round: likewise.
        progress: likewise.

    Returns:
        The finished run.

    Raises:
        RunError: there is no run, or a key that may not change.
        FedheadError: as of :func:`fedhead.run`.
    """
    begun = run if isinstance(run, Run) else load_run(run)
    return begun.resume(overrides, engine=engine, on_round=on_round, progress=progress)


def load_run(path: str | Path) -> Run:
    """A run by its folder, finished or not.

    Example::

        fedhead.load_run("runs/mnist5k").metrics

    Args:
        path: the run folder.

    Raises:
        RunError: there is no run.
        DamagedError: its configuration was changed since it began.
    """
    from simulations.run import open_run

    folder = Path(path).expanduser().resolve()
    if not folder.name:
        raise RunError(f"{folder} holds no run")
    with session():
        open_run(folder)
    return Run(folder)
