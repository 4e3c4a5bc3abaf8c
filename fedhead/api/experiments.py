"""From what a caller names to a configuration: a file, a shipped experiment, or a mapping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import ConfigError
from common.keys import merged, nested

if TYPE_CHECKING:
    from common.config import Config

__all__ = [
    "Experiment",
    "Overrides",
    "configuration",
    "experiment_file",
    "module_folders",
    "plain",
    "written",
]

Experiment = str | Path | Mapping[str, Any]
Overrides = Mapping[str, Any]


def configuration(
    experiment: Experiment, overrides: Overrides | None, own: Mapping[str, Any] | None = None
) -> Config:
    """The configuration of an experiment with other values.

    Args:
        experiment: path of a TOML file; the name of a shipped experiment, where there is no such
            file; or a mapping as TOML would give it.
        overrides: see :func:`plain`.
        own: further ones, nested, which win.

    Raises:
        ConfigError: no such experiment, or with all problems of its content.
    """
    from common.config import changed, load_config

    over = plain(overrides or {})
    if not isinstance(experiment, str | Path | Mapping):
        raise ConfigError([f"{experiment!r} is no experiment, expected a path, name or mapping"])
    if isinstance(experiment, Mapping):
        tree = plain(experiment)
        config = load_config(None, merged(tree, over))
    else:
        config = load_config(experiment_file(experiment), over)
    return changed(config, own) if own else config


def written(experiment: Experiment) -> Mapping[str, Any]:
    """What stands in an experiment, by section; without what is left to defaults.

    Raises:
        ConfigError: no such experiment, or no TOML.
    """
    from common.toml_model import read_toml

    if isinstance(experiment, Mapping):
        return plain(experiment)
    return read_toml(experiment_file(experiment))


def module_folders(experiment: Experiment) -> list[Path]:
    """Where modules of the caller's own are looked for: beside the file, in the working folder."""
    beside = [] if isinstance(experiment, Mapping) else [experiment_file(experiment).parent]
    return [*beside, Path.cwd()]


def plain(overrides: Overrides) -> dict[str, Any]:
    """Values by section as TOML would have them, see :func:`common.keys.nested`.

    >>> plain({"train.rounds": 20, "data.root": Path("photos")})
    {'train': {'rounds': 20}, 'data': {'root': 'photos'}}

    Raises:
        ConfigError: no mapping; a key that is no text, or goes below one that has a value of its
            own.
    """
    if not isinstance(overrides, Mapping):
        raise ConfigError(
            [f"{overrides!r} is no mapping, expected one such as {{'train.rounds': 20}}"]
        )
    tree: dict[str, Any] = _plain(nested(overrides))
    return tree


def _plain(value: Any) -> Any:
    """Paths are text, NumPy's scalars are Python's."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(item) for item in value]
    is_scalar = hasattr(value, "item") and getattr(value, "ndim", None) == 0
    return value.item() if is_scalar else value


def experiment_file(experiment: str | Path) -> Path:
    """The file that is meant: one that is there, else a shipped experiment of that name.

    Raises:
        ConfigError: there is neither; names those that are shipped.
    """
    import simulations

    path = Path(experiment).expanduser()
    shipped = Path(simulations.__file__).parent / "experiments"
    if path.exists() or path.parent != Path():
        return path
    for name in (path.name, f"{path.name}.toml"):
        if (shipped / name).is_file():
            return shipped / name
    known = ", ".join(sorted(file.stem for file in shipped.glob("*.toml")))
    problem = f"no such file, and no shipped experiment of that name (known: {known})"
    raise ConfigError([problem], str(path))
