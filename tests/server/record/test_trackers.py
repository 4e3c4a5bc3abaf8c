"""What trackers are told, read back by their own clients; one that fails ends no run."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import server.round.loop
from common.config import load_config, parse_overrides
from common.config.tracking import TRACKERS, located_uri
from common.errors import ConfigError, MissingExtraError, RunError
from server.record.trackers import registry
from server.record.trackers.tracker import numbers
from server.record.trackers.wandb import _BLOCK, _records
from simulations.resume import change_run
from simulations.run import beginning, open_run, run_in_process

Make = Callable[..., Path]


class _Stop(BaseException):
    """Ends a run where no handler may catch it, as SIGKILL would."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def rounds_of(run: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line.pop("round"): numbers(line) for line in lines}


def cut(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """End the next run when a round's checkpoint is on the disk and nobody has been told of it."""
    save = server.round.loop.save_checkpoint

    def stop(*args: Any, round_number: int, **kwargs: Any) -> None:
        save(*args, round_number=round_number, **kwargs)
        if round_number == after:
            raise _Stop

    monkeypatch.setattr(server.round.loop, "save_checkpoint", stop)


def cut_and_resumed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        cut(patch, after=2)
        with pytest.raises(_Stop):
            run_in_process(run)
    run_in_process(run)


def test_the_config_names_the_trackers_that_there_are() -> None:
    assert tuple(registry.KINDS) == TRACKERS


def test_mlflow_has_each_round_once_after_a_cut(
    quick: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="pip install 'fedhead[mlflow]'")
    run = quick("train.rounds=3", 'tracking.trackers=["mlflow"]', "tracking.project=phones")
    cut_and_resumed(run, monkeypatch)

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=str(tmp_path / "mlruns"))
    experiment = client.get_experiment_by_name("phones")
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    told = rounds_of(run)
    assert {*told[3]} >= {"accuracy", "loss", "uplink-bytes", "train-seconds"}
    for name in told[3]:
        history = client.get_metric_history(found.info.run_id, name)
        assert [(m.step, m.value) for m in history] == [(n, told[n][name]) for n in (1, 2, 3)]
    assert found.data.metrics["summary/accuracy"] == told[3]["accuracy"]
    assert (found.info.status, found.info.run_name) == ("FINISHED", "run")
    assert found.data.params["train.lr"] == "0.01"
    assert found.data.tags["fedhead.strategy"] == "fedavg"
    names = [file.path for file in client.list_artifacts(found.info.run_id)]
    assert "summary.json" in names
    assert not (run / "tensorboard").exists()


def test_a_private_runs_budget_and_sentence_are_told(
    quick: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="pip install 'fedhead[mlflow]'")
    run = quick(
        "privacy.epsilon=8", "train.clients-per-round=0", "train.rounds=2",
        'tracking.trackers=["mlflow"]',
    )  # fmt: skip
    told = run_in_process(run)["privacy"]
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=str(tmp_path / "mlruns"))
    (found,) = client.search_runs([one.experiment_id for one in client.search_experiments()])
    assert found.data.tags["fedhead.privacy_sentence"] == told["sentence"]
    assert found.data.params["privacy.epsilon"] == "8.0"
    assert found.data.metrics["summary/privacy/spent"] == told["spent"]
    history = client.get_metric_history(found.info.run_id, "epsilon-spent")
    assert [point.step for point in history] == [1, 2]
    assert history[0].value < history[1].value == pytest.approx(8.0)


@pytest.mark.slow
def test_wandbs_files_hold_each_round_once_after_a_cut(
    quick: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="pip install 'fedhead[wandb]'")
    from wandb.proto.wandb_internal_pb2 import Record

    run = quick("train.rounds=3", 'tracking.trackers=["wandb"]', "tracking.wandb-mode=offline")
    cut_and_resumed(run, monkeypatch)
    told: list[tuple[int, dict[str, Any]]] = []
    summary: dict[str, Any] = {}
    files = sorted(run.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2  # both are of the same run
    assert len({file.name for file in files}) == 1
    for file in files:
        for record in map(Record.FromString, _records(file.read_bytes())):
            items = {
                (item.key or "/".join(item.nested_key)): json.loads(item.value_json)
                for item in record.history.item
            }
            if items:
                told.append((record.history.step.num, items))
            for item in record.summary.update:
                summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    rounds = rounds_of(run)
    assert [number for number, _ in told] == [1, 2, 3]
    for number, items in told:
        assert items.items() >= rounds[number].items()
    assert summary["summary/accuracy"] == rounds[3]["accuracy"]


def test_wandbs_records_are_put_together_across_blocks() -> None:
    def piece(kind: int, data: bytes) -> bytes:
        return b"crc." + len(data).to_bytes(2, "little") + bytes([kind]) + data

    start = b"header."
    first = bytes(_BLOCK - len(start) - 7)
    content = (
        start + piece(2, first) + piece(4, b"rest") + piece(1, b"next") + piece(1, b"cut")[:-1]
    )
    assert [*_records(content)] == [first + b"rest", b"next"]
    # Six bytes are left of the first block, too few for another piece.
    content = start + piece(1, bytes(_BLOCK - 7 - 7 - 6)) + bytes(6) + piece(1, b"next")
    assert [*_records(content)][1:] == [b"next"]


class _Breaks:
    """A tracker whose server is gone after the first round."""

    def __init__(self, run: object) -> None:
        self.told = 0

    def write(self, round_number: int, values: object) -> None:
        self.told += 1
        if round_number > 1:
            raise ConnectionError("the server is gone\nand more")

    def summarize(self, figures: object, files: object) -> None:
        raise AssertionError

    def close(self, end: object) -> None:
        raise AssertionError


def replaced(monkeypatch: pytest.MonkeyPatch, start: Callable[[Any], Any]) -> None:
    kind = registry.Kind("tensorboardX", "server", start)
    monkeypatch.setattr(registry, "KINDS", {**registry.KINDS, "mlflow": kind})
    monkeypatch.setattr("server.record.trackers.follow.KINDS", registry.KINDS)


def test_a_tracker_that_fails_is_one_warning_and_the_run_goes_on(
    quick: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = []
    replaced(monkeypatch, lambda run: made.append(_Breaks(run)) or made[0])  # type: ignore[func-returns-value]
    run = quick("train.rounds=4", 'tracking.trackers=["mlflow","tensorboard"]')
    with caplog.at_level(logging.WARNING, "fedhead"):
        assert run_in_process(run)["rounds"] == 4
    (line,) = [record.getMessage() for record in caplog.records if "told no more" in record.msg]
    assert line.startswith(
        "mlflow is told no more of this run: ConnectionError: the server is gone"
    )
    assert "and more" not in line
    assert made[0].told == 2
    assert len(rounds_of(run)) == 4


def test_a_store_without_the_run_says_how_to_go_on(
    quick: Make, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mlflow", reason="pip install 'fedhead[mlflow]'")
    run = quick("train.rounds=1", 'tracking.trackers=["mlflow"]', "tracking.mlflow-uri=old")
    run_in_process(run)
    elsewhere = parse_overrides(["tracking.mlflow-uri=new", "train.rounds=2"])
    change_run(run, open_run(run), elsewhere)
    with caplog.at_level(logging.WARNING, "fedhead"):
        assert run_in_process(run)["rounds"] == 2
    assert f"remove {run}/mlflow.json for a new run there" in caplog.text
    (run / "mlflow.json").unlink()
    run_in_process(run)
    assert (run / "mlflow.json").exists()


def test_one_that_cannot_be_reached_ends_a_run_that_begins_and_no_other(
    quick: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(run: object) -> Any:
        raise ConnectionError("refused")

    run = quick("train.rounds=3", 'tracking.trackers=["mlflow"]')
    with monkeypatch.context() as patch:
        replaced(patch, refuse)
        with pytest.raises(RunError, match="trackers=mlflow cannot be reached: ConnectionError"):
            run_in_process(run)
    with monkeypatch.context() as patch:
        replaced(patch, _Breaks)
        cut(patch, after=1)
        with pytest.raises(_Stop):
            run_in_process(run)
    replaced(monkeypatch, refuse)
    with caplog.at_level(logging.WARNING, "fedhead"):
        assert run_in_process(run)["rounds"] == 3
    assert "mlflow is told no more" in caplog.text


def test_a_missing_extra_is_refused_before_anything_is_made(
    tiny_toml: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    config = load_config(None, parse_overrides(["out=new", 'tracking.trackers=["mlflow"]']))
    with (
        pytest.raises(MissingExtraError, match=r"pip install 'fedhead\[mlflow\]'"),
        beginning(config, overwrite=False),
    ):
        raise AssertionError
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ('tracking.trackers=["mlfow"]', "must be some of tensorboard, mlflow, wandb, each once"),
        ('tracking.trackers=["mlflow","mlflow"]', "each once"),
        ("tracking.mlflow-uri=https://me:secret@host/", "MLFLOW_TRACKING_PASSWORD"),
        ("tracking.wandb-mode=sometimes", "'auto', 'online' or 'offline'"),
    ],
)
def test_settings_that_are_none_are_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match="1 problem") as caught:
        load_config(None, parse_overrides([setting]))
    assert message in str(caught.value)


def test_wandb_is_not_left_to_ask_for_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="pip install 'fedhead[wandb]'")
    config = load_config(None, parse_overrides(['tracking.trackers=["wandb"]']))
    with pytest.raises(ConfigError, match="wandb login"):
        registry.check_trackers(config.tracking)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    registry.check_trackers(config.tracking)
    monkeypatch.delenv("WANDB_API_KEY")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    registry.check_trackers(config.tracking)


def test_the_store_is_found_from_any_folder_and_no_password_is_written_down(
    quick: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="pip install 'fedhead[mlflow]'")
    assert located_uri("") == str(tmp_path / "mlruns")
    assert located_uri("sqlite:///runs.db") == f"sqlite:///{tmp_path}/runs.db"
    assert located_uri("file:./my%20runs") == str(tmp_path / "my runs")
    assert located_uri("file:///srv/mlruns") == "file:///srv/mlruns"
    assert located_uri("http://host:5000") == "http://host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@host/")
    run = quick('tracking.trackers=["mlflow"]')
    assert open_run(run).tracking.mlflow_uri == ""
    assert "secret" not in (run / "config.toml").read_text()


def test_a_run_without_trackers_imports_none(quick: Make) -> None:
    run = quick("train.rounds=1", "tracking.trackers=[]")
    run_in_process(run)
    assert not {"mlflow.json", "tensorboard", "wandb"} & {path.name for path in run.iterdir()}
