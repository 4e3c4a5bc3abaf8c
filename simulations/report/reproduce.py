"""How to make each run again: one experiment file for what all have in common, one command each."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w

from simulations.report.runs import Run

__all__ = ["EXPERIMENT_FILE", "command", "common_values", "differences", "to_toml"]

EXPERIMENT_FILE = "experiment.toml"

# Where a run lies does not change what it gives.
_PLACE = ("out", "name")


def common_values(runs: Sequence[Run]) -> dict[str, Any]:
    """What all runs have in common, by dotted key, defaults included; None: unset."""
    first, *others = [run.values for run in runs]
    missing = object()
    return {
        key: value
        for key, value in first.items()
        if key != "out" and all(other.get(key, missing) == value for other in others)
    }


def to_toml(values: Mapping[str, Any]) -> str:
    """Dotted keys as an experiment file."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        if value is None:  # TOML has no word for what is unset
            continue
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return tomli_w.dumps(tree)


def differences(run: Run, common: Mapping[str, Any]) -> dict[str, Any]:
    """What a run has beside what all share."""
    return {k: v for k, v in run.values.items() if k not in common and k not in _PLACE}


def command(run: Run, common: Mapping[str, Any]) -> str:
    """The shell command that makes the run again from :data:`EXPERIMENT_FILE`.

    Where a deployment's folder is, only its owner knows.
    """
    words = ["fedhead", "run", EXPERIMENT_FILE]
    if run.devices:
        words += ["--deployment", "DEPLOYMENT"]
    for key, value in differences(run, common).items():
        if value is None:  # nor has the file
            continue
        words += ["--set", f"{key}={_override(value)}"]
    return shlex.join(words)


def _override(value: Any) -> str:
    """A value as ``--set`` reads it: TOML, or text that is no TOML."""
    if isinstance(value, str) and value and value == value.strip():
        try:
            tomllib.loads(f"value = {value}")
        except tomllib.TOMLDecodeError:
            return value
    if isinstance(value, (str, list)):
        return json.dumps(value, ensure_ascii=False)
    return tomli_w.dumps({"value": value}).partition(" = ")[2].strip()
