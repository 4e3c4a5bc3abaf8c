"""What a hurried caller of the Python API hands over is answered in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import fedhead


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([("train.rounds", 2)], r"is no mapping, expected one such as \{'train.rounds': 20\}"),
        ("train.rounds=2", "'train.rounds=2' is no mapping"),
        ({3: 4}, "3 is no key"),
    ],
)
def test_overrides_are_a_mapping(overrides: Any, message: str) -> None:
    with pytest.raises(fedhead.ConfigError, match=message):
        fedhead.run("mnist5k", overrides)


def test_an_experiment_is_a_path_a_name_or_a_mapping() -> None:
    with pytest.raises(fedhead.ConfigError, match="5 is no experiment, expected a path"):
        fedhead.run(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": 0}, "seeds=0 must be a list"),
        ({"strategies": None}, "strategies=None must be a list"),
        ({"sweep": {"lr": 0.1}}, "must have a list of values for each key"),
        ({"sweep": [("lr", [1])]}, "must be a mapping of keys to lists of values"),
        ({"jobs": -1}, "jobs=-1 must be a whole number"),
        ({"codecs": 5}, "codecs=5 must be a list"),
        ({"codecs": ["nnoe"]}, "codecs: unknown codec 'nnoe', did you mean none?"),
        ({"projections": 255}, "projections=255 must be a list"),
        ({"projections": ["off", 0]}, "backbone.projection=0 must be"),
        (
            {"projections": [8], "sweep": {"backbone.projection": [8]}},
            "^1 problem: sweep backbone.projection: its values are compared, so",
        ),
        ({"jobs": "2", "partitions": 5}, "2 problems: partitions=5 must be a list; jobs='2'"),
    ],
)
def test_arguments_of_a_comparison_are_checked_before_anything_is_made(
    arguments: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(fedhead.ConfigError, match=message):
        fedhead.compare("mnist5k", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_is_named() -> None:
    with pytest.raises(fedhead.RunError, match="/dev/null/x"):
        fedhead.run("mnist5k", {"data.source": "digits"}, out="/dev/null/x")
    with pytest.raises(fedhead.RunError, match="/ holds no run"):
        fedhead.load_run("/")
