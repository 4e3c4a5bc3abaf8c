"""From what a caller names to a configuration: a file, a shipped experiment, or a mapping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError

if TYPE_CHECKING:
    from common.config import Config

__all__ = ["Experiment", "Overrides", "configuration", "module_folders", "nested"]

Experiment = str | Path | Mapping[str, Any]
Overrides = Mapping[str, Any]


def configuration(
    experiment: Experiment, overrides: Overrides | None, own: Mapping[str, Any] | None = None
) -> Config:
    """The configuration of an experiment with other values.

    Args:
        experiment: path of a TOML file; the name of a shipped experiment, where there is no such
            file; or a mapping as TOML would give it.
        overrides: see :func:`nested`.
        own: further ones, nested, which win.

    Raises:
        ConfigError: no such experiment, or with all problems of its content.
    """
    from common.config import changed, load_config

    over = nested(overrides or {})
    if isinstance(experiment, Mapping):
        tree = nested(experiment)
        config = load_config(None, _merged(tree, over))
    else:
        config = load_config(_file(experiment), over)
    return changed(config, own) if own else config


def module_folders(experiment: Experiment) -> list[Path]:
    """Where modules of the caller's own are looked for: beside the file, in the working folder."""
    beside = [] if isinstance(experiment, Mapping) else [_file(experiment).parent]
    return [*beside, Path.cwd()]


def nested(overrides: Overrides) -> dict[str, Any]:
    """Values by section from values by dotted key; both may stand side by side.

    >>> nested({"train.rounds": 20, "strategy": {"args": {"mu": 0.1}}, "strategy.name": "fedprox"})
    {'train': {'rounds': 20}, 'strategy': {'args': {'mu': 0.1}, 'name': 'fedprox'}}

    Raises:
        ConfigError: a key that is no text, or goes below one that has a value of its own.
    """
    tree: dict[str, Any] = {}
    for key, value in overrides.items():
        if not isinstance(key, str):
            raise ConfigError([f"{key!r} is no key, expected text such as 'train.rounds'"])
        value = nested(value) if isinstance(value, Mapping) else _plain(value)
        for part in reversed(key.split(".")):
            value = {part: value}
        tree = _merged(tree, value)
    return tree


def _plain(value: object) -> object:
    """As TOML would have it: paths are text, NumPy's scalars are Python's."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    is_scalar = hasattr(value, "item") and getattr(value, "ndim", None) == 0
    return value.item() if is_scalar else value  # type: ignore[attr-defined]


def _merged(base: Mapping[str, Any], over: Mapping[str, Any], at: str = "") -> dict[str, Any]:
    tree = dict(base)
    for key, value in over.items():
        old = tree.get(key)
        if key in tree and isinstance(old, dict) != isinstance(value, dict):
            raise ConfigError([f"'{at}{key}' has both a value of its own and keys below it"])
        tree[key] = _merged(old, value, f"{at}{key}.") if isinstance(old, dict) else value
    return tree


def _file(experiment: str | Path) -> Path:
    """The file that is meant; one in the working folder comes before a shipped one."""
    import simulations

    path = Path(experiment).expanduser()
    shipped = Path(simulations.__file__).parent / "experiments"
    if path.exists() or path.parent != Path():
        return path
    for name in (path.name, f"{path.name}.toml"):
        if (shipped / name).is_file():
            return shipped / name
    known = ", ".join(sorted(file.stem for file in shipped.glob("*.toml")))
    raise ConfigError([f"there is no file {path}, and no experiment of that name (known: {known})"])
