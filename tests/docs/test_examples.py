"""The files of docs/examples do what the pages say of them."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fenced import ROOT, blocks, pages
from safetensors.numpy import load_file

from common.backbone.architectures import ARCHITECTURES
from common.codecs import CODECS
from common.config import load_config
from common.corrections import CORRECTIONS
from common.fields import FIELDS
from simulations.run import run_in_process

Make = Callable[..., Path]

TABLES: tuple[Any, ...] = (ARCHITECTURES, FIELDS, CORRECTIONS, CODECS)

EXAMPLES = ROOT / "docs" / "examples"
PATCHES = ("client_figure/figure.patch", "export_target/npz.patch")


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What an example adds to a table is gone after its test, and so is its module."""
    before = [dict(table) for table in TABLES]
    modules = {*sys.modules}
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for table, rows in zip(TABLES, before, strict=True):
        table.clear()
        table.update(rows)
    for name in {*sys.modules} - modules:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(EXAMPLES)):
            del sys.modules[name]


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def small(quick: Make, folder: str, *more: str) -> tuple[Path, dict[str, Any]]:
    """An example's strategy on the small data of all tests."""
    own = load_config(EXAMPLES / folder / "experiment.toml").strategy
    args = [f"strategy.args.{key}={value}" for key, value in own.args.items()]
    run = quick(
        f"strategy.name={own.name}", f"strategy.root={EXAMPLES / folder}", *args,
        "train.rounds=2", *more, name=folder,
    )  # fmt: skip
    return run, run_in_process(run)


# A reproduction takes minutes and has a test of its own.
FILES = sorted(f for f in EXAMPLES.glob("*/*.toml") if f.parent.name != "reproduction")


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.parent.name)
def test_the_command_at_an_examples_top_is_run_by_a_page(file: Path) -> None:
    first = file.read_text().splitlines()[0].removeprefix("# ")
    pages_run = [b.text for p in pages() for b in blocks((ROOT / p).read_text()) if b.is_run]
    assert any(first in text.splitlines() for text in pages_run), first


@pytest.mark.slow
def test_a_strategy_steps_by_signs_and_reports_its_metric(quick: Make) -> None:
    run, _ = small(quick, "strategy")
    steps = np.unique(np.abs(np.round(load_file(run / "head.safetensors")["weight"] / 0.003, 3)))
    assert set(steps) <= {0.0, 1.0, 2.0}
    assert all(0 <= line["strategy"]["turned"] <= 1 for line in lines(run))


def test_a_field_is_sent_and_reported(quick: Make) -> None:
    run, summary = small(quick, "field")
    plain = run_in_process(quick("train.rounds=2", name="plain"))
    assert summary["loss"] == pytest.approx(plain["loss"], rel=1e-4)  # sums are rounded otherwise
    assert all(line["strategy"]["delta-norm"] > 0 for line in lines(run))


def test_a_memory_changes_the_second_round_only(quick: Make) -> None:
    every = "train.clients-per-round=0"
    run, _ = small(quick, "memory", every)
    plain = quick(every, "train.rounds=2", name="plain")
    run_in_process(plain)
    first, second = (
        [line["loss"] for line in pair] for pair in zip(lines(run), lines(plain), strict=True)
    )
    assert first[0] == pytest.approx(first[1], rel=1e-5)  # cohorts sum in another order
    assert second[0] != pytest.approx(second[1], rel=1e-3)


def test_a_codec_halves_the_bytes(quick: Make) -> None:
    _, summary = small(quick, "codec")
    plain = run_in_process(quick("train.rounds=2", name="plain"))
    assert summary["uplink_bytes"] < 0.6 * plain["uplink_bytes"]


def start(words: list[object], folder: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        [*map(str, words)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_backbone_is_trained_on(quick: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "backbone")
    importlib.import_module("own_net")
    summary = run_in_process(
        quick("backbone.arch=own_net", "backbone.weights=random", "train.lr=0.1", "train.rounds=8")
    )
    assert summary["accuracy"] > 0.3  # of ten digits, with random filters


SMALL = """
name = "small"
[data]
source = "digits"
calibration-examples = 64
[partition]
num-clients = 4
[backbone]
weights = "random"
input-size = 32
distill-steps = 0
[train]
rounds = 1
[baseline]
enabled = false
"""


@pytest.mark.slow
@pytest.mark.parametrize("patch", PATCHES)
def test_a_patch_of_the_package_applies_and_works(
    patch: str, copy: Path, environment: Mapping[str, str]
) -> None:
    shutil.copy(EXAMPLES / patch, copy / "own.patch")
    start(["git", "init", "-q"], copy, environment)  # else git looks for a repository above
    start(["git", "apply", "own.patch"], copy, environment)
    (copy / "small.toml").write_text(SMALL)
    # The copy's own packages, not the installed ones.
    own = {**environment, "PYTHONPATH": str(copy)}
    fedhead = [sys.executable, "-m", "fedhead"]
    start([*fedhead, "run", "small.toml", "--out", "run"], copy, own)
    if "figure" in patch:
        assert all(line["most-threads"] >= 1 for line in lines(copy / "run"))
        return
    start([*fedhead, "export", "run", "--target", "npz"], copy, own)
    with np.load(copy / "run" / "head.npz") as head:
        assert head["weight"].shape[0] == 10
        assert list(head["classes"]) == [str(i) for i in range(10)]


@pytest.mark.parametrize("patch", PATCHES)
def test_a_patch_fits_the_package_as_it_is(patch: str) -> None:
    command = ["git", "apply", "--check", str(EXAMPLES / patch)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
