"""A run at work: begun or gone on with, watched, and left so that it can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError, FedheadError
from fedhead.api.bar import Bar, bar
from fedhead.api.experiments import Overrides, plain
from fedhead.api.session import mendable, session

if TYPE_CHECKING:
    from common.config import Config
    from simulations.engines.carrier import Carrier

__all__ = ["Listener", "Way", "begin", "go_on"]

Listener = Callable[[Mapping[str, Any]], object]
"""Called with the metrics of each finished round, such as "round" and "accuracy"."""


@dataclass(frozen=True)
class Way:
    """How a run is carried and watched; see :func:`fedhead.run`."""

    engine: str
    on_round: Listener | Sequence[Listener]
    progress: bool

    def carrier(self) -> Carrier:
        """What carries the run's messages, ready to begin.

        Raises:
            ConfigError: an unknown engine, or one that tells of no rounds.
            MissingExtraError: Flower's simulation is not installed.
        """
        from simulations.engines.carrier import Carrier, Engine

        if self.engine not in [*Engine]:
            known = ", ".join(Engine)
            raise ConfigError([f"engine={self.engine!r} is unknown (known: {known})"])
        carrier = Carrier(Engine(self.engine))
        if _listeners(self.on_round):
            carrier.check_tells()
        carrier.check_ready()
        return carrier


def begin(config: Config, way: Way, *, overwrite: bool) -> Path:
    """Run an experiment from its beginning, within a session.

    Returns:
        The run folder.
    """
    from simulations.run import beginning

    carrier = way.carrier()
    with ExitStack() as stack:
        with mendable():
            path = stack.enter_context(beginning(config, overwrite=overwrite))
        _work(path, carrier, way)
    return path


def go_on(path: Path, overrides: Overrides | None, way: Way) -> None:
    """Go on with the run in a folder, with other values of keys that may change."""
    from simulations.resume import change_run, needs_data
    from simulations.run import open_run

    with session():
        config, carrier = open_run(path), way.carrier()
        carrier.check_suits(path)
        if overrides:
            change_run(path, config, plain(overrides))
        with needs_data(path, config, "resume"):
            _work(path, carrier, way)


def _listeners(on_round: Listener | Sequence[Listener]) -> list[Listener]:
    listeners = [on_round] if callable(on_round) else [*on_round]
    if wrong := [one for one in listeners if not callable(one)]:
        raise ConfigError([f"on_round is {wrong[0]!r}, expected a function, or several"])
    return listeners


def _work(path: Path, carrier: Carrier, way: Way) -> None:
    """Run to the end, and say what is there where something ends it early."""
    from server.record.progress import all_of
    from simulations.engines.carrier import Engine
    from simulations.run import open_run

    rounds = open_run(path).train.rounds
    with _noted(path), bar(wanted=way.progress) as shown:
        shown.show("preparing", 0, 0)
        listeners: list[Listener] = [_shower(shown, rounds), *_listeners(way.on_round)]
        tells = carrier.engine is Engine.IN_PROCESS
        summary = carrier.run(path, on_round=all_of(listeners) if tells else None)
        done = summary["rounds"]
        shown.show(f"{done} rounds, accuracy {100 * summary['accuracy']:.1f} %", done, done)


def _shower(shown: Bar, rounds: int) -> Listener:
    def show(metrics: Mapping[str, Any]) -> None:
        number, accuracy = metrics["round"], 100 * metrics["accuracy"]
        shown.show(f"round {number} of {rounds}, accuracy {accuracy:.1f} %", number, rounds)

    return show


@contextmanager
def _noted(path: Path) -> Iterator[None]:
    """Add to what ends a run, an interrupt or a listener's error, how to go on with it."""
    from server.record.replaced import replaced_of
    from server.record.runfolder import intact_rounds

    try:
        yield
    except FedheadError:
        raise  # says so itself
    except BaseException as exc:
        if replaced_of(path).exists():  # which comes back
            exc.add_note(f"no round had finished: {path} holds its former run again")
        else:
            done, _ = intact_rounds(path)
            rounds = "1 round has" if done == 1 else f"{done} rounds have"
            exc.add_note(f"{rounds} finished: go on with fedhead.resume({str(path)!r})")
        raise
