"""What may change when a run goes on, and what it needs from outside its folder."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.config import Config, changed
from common.config.tracking import located_uri
from common.data_sources import kind_of
from common.errors import BackboneError, DataError, RunError
from common.files import write_atomic
from common.keys import flat
from server.record.checkpoint import load_latest
from server.record.replaced import locked

__all__ = ["MAY_CHANGE", "allowed", "anchored", "change_run", "needs_data"]

MAY_CHANGE = {
    "train.rounds": "only where a run ends: no round depends on it, but by some schedules",
    "round.deadline-seconds": "how long to wait for the devices that are there",
    "round.quorum": "how many of them a round can do with",
    "round.keep-checkpoints": "what the disk can hold",
    "data.source": "where the same data lie now: their content is compared",
    "data.root": "likewise",
    "data.download": "likewise",
    "strategy.root": "where the same module lies now",
    "train.loss-root": "likewise",
    "backbone.weights": "where the same weights lie now: the backbone's fingerprint is compared",
    "baseline.enabled": "what is computed beside the rounds",
    "tracking.trackers": "who is told of the rounds",
    "tracking.mlflow-uri": "where the same store lies now",
    "tracking.wandb-mode": "when W&B is sent what it is told",
    "simulation.cohort-memory": "what the memory of this machine can hold",
}
"""Keys that a run may go on with other values of, each with the reason."""


def anchored(config: Config) -> Config:
    """The same configuration with absolute paths, which hold from any working folder."""
    source, root = config.data.source, config.data.root
    kind, colon, path = config.backbone.weights.partition(":")
    paths = {
        # A relative source is looked up below the root.
        "data": {"source": source if root else _located(source), "root": _absolute(root)},
        "backbone": {"weights": f"{kind}:{_absolute(path)}" if colon else kind},
        "strategy": {
            "init-from": _absolute(config.strategy.init_from),
            "root": _absolute(config.strategy.root),
        },
        "train": {"loss-root": _absolute(config.train.loss_root)},
    }
    if "mlflow" in config.tracking.trackers:
        paths["tracking"] = {"mlflow-uri": located_uri(config.tracking.mlflow_uri)}
    return changed(config, paths)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute()) if path else ""


def _located(source: str) -> str:
    kind, (name, _, rest) = kind_of(source), source.partition(":")
    if kind is None:
        return source
    if kind.is_path:
        return f"{name}:{_absolute(rest)}"
    place, mark, subset = rest.partition("#")  # of the Hub, unless there is such a folder
    is_folder = Path(place).expanduser().is_dir()
    return f"{name}:{_absolute(place)}{mark}{subset}" if is_folder else source


def allowed(config: Config, overrides: Mapping[str, Any], path: Path) -> Config:
    """A run's configuration with other values of keys that may change.

    Args:
        config: as it is.
        overrides: as ``parse_overrides`` gives them.
        path: the run folder.

    Raises:
        RunError: another key; the message says what to do instead.
        ConfigError: a value that is not one.
    """
    new = anchored(changed(config, overrides))
    before, after = (flat(c.model_dump(by_alias=True)) for c in (config, new))
    # Noise is chosen for all rounds together, and most schedules end with the last one.
    binds = config.privacy.active or config.train.rates.depends_on_rounds
    fixed = {"train.rounds"} if binds else set()
    refused = [
        key
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key) and (key not in MAY_CHANGE or key in fixed)
    ]
    if refused:
        others = ", ".join(key for key in MAY_CHANGE if key not in fixed)
        because = " (one budget of privacy is for all rounds together)" * config.privacy.active
        raise RunError(
            f"{path} cannot go on with another {', '.join(refused)}{because}, only with another "
            f"{others}; a new run can start from its head: fedhead run "
            f"EXPERIMENT.toml --init-from {shlex.quote(str(path))}"
        )
    return new


def change_run(path: Path, config: Config, overrides: Mapping[str, Any]) -> None:
    """Write other values into a run's configuration, for it to go on with.

    Args:
        path: the run folder.
        config: of the run.
        overrides: see ``allowed``.

    Raises:
        RunError: a key that may not change, fewer rounds than are finished, or the run is at work.
    """
    from server.round.stock import is_stock

    new = allowed(config, overrides, path)
    if is_stock(new.strategy.name):
        raise RunError(f"{path}: a run with a stock Flower strategy cannot be resumed")
    with locked(path):
        checkpoint = load_latest(path / "checkpoint")
        if checkpoint and checkpoint.round_number > new.train.rounds:
            raise RunError(
                f"{path} has finished {checkpoint.round_number} rounds already, more than "
                f"train.rounds={new.train.rounds}"
            )
        text = new.model_copy(update={"out": ""}).to_toml()
        write_atomic(path / "config.toml", text.encode())


@contextmanager
def needs_data(path: Path, config: Config, command: str) -> Iterator[None]:
    """Say how a run finds data or weights that are not where its configuration has them.

    Args:
        path: the run folder.
        config: of the run.
        command: that takes ``--set``.
    """
    kind, (name, _, rest) = kind_of(config.data.source), config.data.source.partition(":")
    is_path = kind is not None and (kind.is_path or Path(rest).is_absolute())
    place = f"data.source={name}:PATH" if is_path else "data.root=PATH"
    try:
        yield
    except (DataError, BackboneError) as exc:
        key = place if isinstance(exc, DataError) else "backbone.weights=file:PATH"
        remedy = f"fedhead {command} {shlex.quote(str(path))} --set {key}"
        raise RunError(f"{exc}; if it lies elsewhere now: {remedy}") from exc
