"""Runs that go on: for longer, elsewhere, and with what they need from outside."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import server.app
import server.export.run_model
import server.round.loop
from common import experiment
from common.config import Config, load_config
from common.files import simulated_state
from common.keys import flat
from common.types import Head
from server.record.checkpoint import save_checkpoint
from simulations.resume import MAY_CHANGE, anchored
from simulations.run import open_run, read_summary, run_in_process

Make = Callable[..., Path]
CutAfter = Callable[[int], AbstractContextManager[None]]
Fedhead = Callable[..., tuple[int, str, str]]


def advised(err: str) -> list[str]:
    """The arguments of the command that an error ends with."""
    found = re.search(r"fedhead ((?:resume|export) .+)$", err.strip().splitlines()[-1])
    assert found, err
    return shlex.split(found[1])


def rounds(run: Path) -> list[int]:
    return [json.loads(line)["round"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "fedadam"])
def test_a_finished_run_goes_on_for_longer_elsewhere_to_the_same_bytes(
    quick: Make, fedhead: Fedhead, tmp_path: Path, strategy: str
) -> None:
    options = (f"strategy.name={strategy}",)
    whole = run_in_process(quick(*options, "train.rounds=5", name="whole"))
    run = quick(*options, "train.rounds=3", name="short")
    run_in_process(run)
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    run.rename(moved)
    code, out, err = fedhead("resume", moved, "--set", "train.rounds=5", "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert summary["head_sha256"] == whole["head_sha256"]
    assert summary["run"] == str(moved)
    assert rounds(moved) == [1, 2, 3, 4, 5]
    assert open_run(moved).train.rounds == 5
    assert not run.exists()


def test_a_run_that_goes_on_is_unfinished_until_it_ends(
    quick: Make, cut_after: CutAfter, fedhead: Fedhead
) -> None:
    run = quick("train.rounds=1")
    run_in_process(run)
    with cut_after(2):
        assert fedhead("resume", run, "--set", "train.rounds=3")[0] == 130
    # What the first round gave is not taken for what the second did.
    assert not (run / "summary.json").exists()
    code, _, err = fedhead("export", run, "--target", "head")
    assert code == 0, err
    checkpoint = load_file(run / "checkpoint" / "000002" / "head.safetensors")
    exported = load_file(run / "device-head.safetensors")
    np.testing.assert_array_equal(exported["weight"], checkpoint["weight"])


def test_keys_that_may_change_exist_and_each_has_its_reason() -> None:
    assert MAY_CHANGE.keys() <= flat(Config().model_dump(by_alias=True)).keys()
    assert all(MAY_CHANGE.values())


@dataclass(frozen=True)
class _State:
    """Of a strategy that remembers nothing."""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["train.lr=0.5"], ["another train.lr,", "--init-from"]),
        (["seed=3", "strategy.name=scaffold"], ["another seed, strategy.name,"]),
        (["strategy.args.mu=1"], ["another strategy.args.mu,"]),
        (["out=elsewhere"], ["another out,"]),
        (["train.rounds=1"], ["has finished 2 rounds already", "train.rounds=1"]),
        (["train.rounds=many"], ["train.rounds='many'"]),
    ],
)
def test_what_would_change_earlier_rounds_is_refused_by_name(
    quick: Make, fedhead: Fedhead, changes: list[str], words: list[str]
) -> None:
    run = quick("train.rounds=2")
    save_checkpoint(
        run / "checkpoint", round_number=2, head=Head.zeros(2, 3), state=_State(), counters={},
        keep=1,
    )  # fmt: skip
    before = (run / "config.toml").read_text()
    code, out, err = fedhead("resume", run, *(w for c in changes for w in ("--set", c)))
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    for word in words:
        assert word in err
    assert (run / "config.toml").read_text() == before


def images(folder: Path, *names: str, each: int = 24) -> Path:
    rng = np.random.default_rng(0)
    for k, name in enumerate(names):
        for i in range(each):
            path = folder / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shade = rng.integers(0, 90, (8, 8, 3)) + 80 * k
            Image.fromarray(shade.astype(np.uint8)).save(path)
    return folder


ON_IMAGES = (
    "partition.scheme=iid", "partition.num-clients=2", "train.clients-per-round=0",
    "data.calibration-examples=8", "backbone.weights=random", "backbone.input-size=32",
    "train.rounds=2",
)  # fmt: skip


@pytest.mark.parametrize("command", ["resume", "export"])
def test_data_that_have_moved_are_named_and_the_advice_works(
    quick: Make, fedhead: Fedhead, tmp_path: Path, command: str
) -> None:
    data = images(tmp_path / "data", "cat", "dog")
    run = quick(*ON_IMAGES, f"data.source=folder:{data}", name="a run")
    before = run_in_process(run)
    data.rename(tmp_path / "moved data")
    experiment._dataset.cache_clear()  # a command is a process of its own
    options = ["--target", "head"] if command == "export" else []
    code, _, err = fedhead(command, run, *options)
    assert code == 1
    assert str(data) in err
    arguments = [text.replace("PATH", str(tmp_path / "moved data")) for text in advised(err)]
    assert arguments[-1] == f"data.source=folder:{tmp_path / 'moved data'}"
    code, _, err = fedhead(*arguments, *options)
    assert code == 0, err
    assert read_summary(run)["head_sha256"] == before["head_sha256"]


def test_other_data_in_the_same_place_are_refused(
    quick: Make, fedhead: Fedhead, tmp_path: Path
) -> None:
    data = images(tmp_path / "data", "cat", "dog")
    run = quick(*ON_IMAGES, f"data.source=folder:{data}")
    run_in_process(run)
    other = images(tmp_path / "other", "cat", "dog", each=25)
    code, _, err = fedhead("resume", run, "--set", f"data.source=folder:{other}")
    assert code == 1
    assert "have changed since the run began" in err


def test_paths_hold_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tree = {
        "data": {"source": "folder:images", "root": ""},
        "backbone": {"weights": "file:w.pt"},
        "strategy": {"init-from": "runs/a"},
    }
    config = anchored(load_config(None, tree))
    assert config.data.source == f"folder:{tmp_path}/images"
    assert config.backbone.weights == f"file:{tmp_path}/w.pt"
    assert config.strategy.init_from == f"{tmp_path}/runs/a"
    for source in ("digits", "hf:name/of", "CIFAR10"):
        assert anchored(load_config(None, {"data": {"source": source}})).data.source == source
    (tmp_path / "table").mkdir()
    for source in ("hf:table", "hf:./table#small"):  # a folder of one's own, not of the Hub's
        located = anchored(load_config(None, {"data": {"source": source}})).data.source
        assert located == source.replace("hf:./", "hf:").replace("hf:", f"hf:{tmp_path}/")
    below = {"data": {"source": "folder:images", "root": "all"}}
    assert anchored(load_config(None, below)).data.source == "folder:images"


def test_a_moved_run_needs_nothing_that_made_its_backbone(
    quick: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    options = (*ON_IMAGES, f"data.source=folder:{images(tmp_path / 'data', 'cat', 'dog')}")
    whole = run_in_process(quick(*options, name="whole"))
    run = quick(*options)
    save = server.round.loop.save_checkpoint

    def cut(*args: object, round_number: int, **kwargs: object) -> None:
        save(*args, round_number=round_number, **kwargs)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    def absent(*_: object) -> None:
        raise AssertionError("another machine would make another backbone")

    with monkeypatch.context() as patch:
        patch.setattr(server.round.loop, "save_checkpoint", cut)
        with pytest.raises(KeyboardInterrupt):
            run_in_process(run)
    monkeypatch.setattr(server.export.run_model, "prepare", absent)
    monkeypatch.setenv("FEDHEAD_CACHE", str(tmp_path / "another machine's cache"))
    assert run_in_process(run)["head_sha256"] == whole["head_sha256"]


def test_clients_whose_memory_is_gone_are_named(
    quick: Make, monkeypatch: pytest.MonkeyPatch, fedhead: Fedhead
) -> None:
    run = quick("strategy.name=scaffold", "train.rounds=2")

    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(server.app, "ask_clients", cut)
        assert fedhead("resume", run)[0] == 130
    run_id = json.loads((run / "run.json").read_text())["run-id"]
    shutil.rmtree(simulated_state() / run_id)
    code, _, err = fedhead("resume", run, "--set", "train.rounds=3")
    assert code == 1
    assert f"{simulated_state() / run_id} is missing" in err
    assert rounds(run) == [1, 2]


def test_a_class_that_was_added_starts_at_zero_and_is_said(
    quick: Make, fedhead: Fedhead, tmp_path: Path
) -> None:
    data = images(tmp_path / "data", "cat", "dog")
    former = quick(*ON_IMAGES, f"data.source=folder:{data}", name="former")
    fingerprint = run_in_process(former)["fingerprint"]
    data = images(tmp_path / "more data", "cat", "dog", "eel")
    settings = [word for item in ON_IMAGES for word in ("--set", item)]
    source = ("--set", f"data.source=folder:{data}", "--set", "train.lr=1e-9")
    code, out, err = fedhead(
        "run", tmp_path / "tiny.toml", *settings, *source, "--init-from", former, "--json"
    )
    assert code == 0, err
    assert "2 of 3 classes; new ones, which start at zero: eel" in err
    summary = json.loads(out)
    # Backbones are made of the data's images, and a head is worth nothing on another one.
    assert summary["fingerprint"] == fingerprint
    before, after = (load_file(Path(r) / "head.safetensors") for r in (former, summary["run"]))
    np.testing.assert_allclose(after["weight"][:2], before["weight"], atol=1e-6)
    assert np.abs(after["weight"][2]).max() < 1e-6 < np.abs(after["weight"][:2]).max()
