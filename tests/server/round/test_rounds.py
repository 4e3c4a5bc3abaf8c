"""Rounds of real devices: who is asked, when a round closes, what is counted and written down."""

from __future__ import annotations

import csv
import json
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from flwr.app import Message

import server.app
import server.round.loop
from client.app import app as client_app
from common.experiment import run_config
from common.messages import TrainReply
from server.app import run_experiment
from server.export.runtime_cards import ExportReport
from server.record.events import event, event_log
from simulations.engines.in_process import InProcessGrid
from simulations.run import read_summary, run_in_process

Make = Callable[..., Path]
Grid = type[InProcessGrid]


@pytest.fixture(autouse=True)
def _no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.app, "export", lambda *_: ExportReport("model", Path(), 0, ""))


def run(folder: Path, grid_class: Grid) -> Any:
    values = {"experiment": str(folder / "config.toml"), "overrides": ""}
    run_experiment(grid_class(client_app, 1, values), run_config(values))
    return read_summary(folder)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder: Path, name: str = "") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == name or not name]


def accounts(folder: Path) -> dict[int, dict[str, str]]:
    rows = csv.DictReader((folder / "devices.csv").read_text().splitlines())
    return {int(row["client"]): row for row in rows}


def slow(base: Grid, held: dict[int, int], node: int = 3) -> Grid:
    """A node's answer to a round arrives when another round has begun, or never (0)."""

    class Slow(base):  # type: ignore[valid-type,misc]
        current = 0
        waiting: dict[str, int]
        evaluated: ClassVar[set[int]] = set()

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            ids = list(super().push_messages(messages))
            self.waiting = getattr(self, "waiting", {})
            for name, message in zip(ids, messages, strict=True):
                if message.metadata.message_type == "evaluate":
                    self.evaluated.add(message.metadata.dst_node_id)
                elif message.metadata.message_type == "train":
                    self.current = int(message.metadata.group_id.split()[0])
                    if message.metadata.dst_node_id == node and self.current in held:
                        self.waiting[name] = held[self.current]
            return ids

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            come = [
                name
                for name in message_ids
                if name not in self.waiting or 0 < self.waiting[name] <= self.current
            ]
            return super().pull_messages(come)

    return Slow


SOME = ("train.clients-per-round=2", "round.over-selection=0.5", "round.quorum=1.0")


def test_a_round_closes_with_as_many_updates_as_it_wants(tiny: Make, device_grid: Grid) -> None:
    # Nobody is slow: the third answer has arrived with the others, and does not count.
    folder = tiny("train.rounds=2", *SOME)
    summary = run(folder, device_grid)
    for line in metrics(folder):
        assert (line["cohort"], line["valid"], line["failed"], line["late"]) == (3, 2, 1, 1)
    assert (summary["valid_updates"], summary["failed_updates"]) == (4, 2)


def test_a_late_answer_counts_once_as_late_and_never_as_an_update(
    tiny: Make, device_grid: Grid
) -> None:
    folder, alone = tiny("train.rounds=4", *SOME, name="late"), tiny(
        "train.rounds=4", *SOME, name="alone"
    )  # fmt: skip
    started = time.monotonic()
    # What phone 3 made of round 1 comes in round 2, that of round 3 in round 4.
    summary = run(folder, slow(device_grid, {1: 2, 3: 4}))
    assert time.monotonic() - started < 60  # the deadline is an hour: nobody waited for it
    lines = metrics(folder)
    # While it owes an answer it is not asked: rounds 2 and 4 have a cohort of two.
    assert [line["cohort"] for line in lines] == [3, 2, 3, 2]
    assert [line["valid"] for line in lines] == [2, 2, 2, 2]
    assert [line["late"] for line in lines] == [0, 1, 0, 1]
    assert summary["late_updates"] == 2
    assert [(e["round"], e["client"]) for e in events(folder, "late")] == [(1, 103), (3, 103)]
    assert [e["missing"] for e in events(folder, "closed")] == [1, 1]
    # The head is that of the two quick ones, and so is the last word on it.
    grid = slow(device_grid, {1: 0})
    assert summary["head_sha256"] == run(alone, grid)["head_sha256"]
    assert grid.evaluated == {1, 2}


def test_a_slow_device_holds_a_round_up_to_its_deadline_and_no_longer(
    tiny: Make, device_grid: Grid, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny("train.rounds=3", "train.clients-per-round=3", "round.deadline-seconds=1")
    summary = run(folder, slow(device_grid, {1: 3}))
    first, *later = metrics(folder)
    assert first["seconds"] > 1
    assert [line["valid"] for line in (first, *later)] == [2, 2, 2]
    assert [line["late"] for line in (first, *later)] == [0, 0, 1]
    assert (summary["failed_updates"], summary["late_updates"]) == (1, 1)
    assert caplog.text.count("round 1: client 103: no answer") == 1


@pytest.mark.slow
def test_who_has_been_silent_for_long_is_asked_again(
    tiny: Make, device_grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.round.stragglers._PATIENCE", 0)  # a lost message is noticed at once
    folder = tiny("train.rounds=2", "train.clients-per-round=3", "round.deadline-seconds=0.5")
    run(folder, slow(device_grid, {1: 0}))
    assert [line["valid"] for line in metrics(folder)] == [2, 3]


class Absence:
    """Which nodes are away, by how often the server has looked."""

    def __init__(self, base: Grid, away: Callable[[int], set[int]]) -> None:
        class Flaky(base):  # type: ignore[valid-type,misc]
            looks = 0

            def get_node_ids(self) -> Iterable[int]:
                self.looks += 1
                return [n for n in super().get_node_ids() if n not in away(self.looks)]

        self.grid = Flaky


def test_a_round_waits_for_the_devices_that_its_quorum_needs(tiny: Make, device_grid: Grid) -> None:
    # All devices lose their connection after the first round and come back one by one.
    away = {4: {1, 2, 3}, 5: {1, 2, 3}, 6: {2, 3}}
    folder = tiny("train.rounds=2", "train.clients-per-round=3", "round.quorum=0.6")
    summary = run(folder, Absence(device_grid, lambda look: away.get(look, set())).grid)
    assert summary["rounds"] == 2
    assert [line["valid"] for line in metrics(folder)] == [3, 3]
    waiting = events(folder, "waiting")
    assert [(e["ready"], e["needed"]) for e in waiting] == [(0, 2)]
    assert [e["client"] for e in events(folder, "gone")][:3] == [101, 102, 103]


@pytest.mark.slow
def test_a_round_whose_devices_do_not_come_back_is_lost_and_the_run_goes_on(
    tiny: Make, device_grid: Grid
) -> None:
    def away(look: int) -> set[int]:
        return {1, 2, 3} if 3 < look < 8 else set()

    folder = tiny("train.rounds=3", "train.clients-per-round=3", "round.deadline-seconds=1")
    summary = run(folder, Absence(device_grid, away).grid)
    assert [line["cohort"] for line in metrics(folder)] == [3, 0, 3]
    assert (summary["rounds"], summary["accepted_rounds"]) == (3, 2)
    assert [e["round"] for e in events(folder, "unchanged")] == [2]


def test_simulated_phones_beyond_what_a_round_wants_are_late_by_their_own_clock(tiny: Make) -> None:
    runs = [
        tiny("round.over-selection=0.5", f"simulation.nodes={nodes}", name=str(nodes))
        for nodes in (1, 3)
    ]
    first, second = map(run_in_process, runs)
    for line in metrics(runs[0]):
        assert (line["cohort"], line["valid"], line["late"], line["failed"]) == (6, 4, 2, 2)
        assert line["simulated-seconds"] > 0
    # The same ones whatever the number of nodes, whose sums cannot be taken apart.
    fates = [
        [(row["client"], row["valid"], row["late"]) for row in accounts(r).values()] for r in runs
    ]
    assert fates[0] == fates[1]
    assert first["valid_updates"] == second["valid_updates"] == 20


def test_every_client_is_accounted_for(tiny: Make, device_grid: Grid) -> None:
    folder = tiny("train.rounds=4", *SOME)
    before = time.time()
    summary = run(folder, slow(device_grid, {1: 2}))
    rows = accounts(folder)
    assert list(rows) == [101, 102, 103]
    for column, total in {
        "valid": "valid_updates", "failed": "failed_updates", "late": "late_updates",
        "rejected": "rejected_updates", "uplink_bytes": "uplink_bytes",
        "downlink_bytes": "downlink_bytes", "backbone_bytes": "backbone_bytes_sent",
    }.items():  # fmt: skip
        assert sum(int(row[column]) for row in rows.values()) == summary[total], column
    asked = sum(line["cohort"] for line in metrics(folder))
    assert asked == sum(int(r[k]) for r in rows.values() for k in ("valid", "rejected", "failed"))
    assert all(int(row["backbone_bytes"]) > 2_000_000 for row in rows.values())
    for row in rows.values():
        seen = np.datetime64(row["last_seen"].removesuffix("Z")).astype("datetime64[ms]")
        assert before - 1 <= seen.astype(np.int64) / 1000 <= time.time() + 1
        assert row["last_seen"].endswith("Z")


def test_accounts_of_a_resumed_run_are_those_of_an_undisturbed_one(
    tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(BaseException):
        pass

    away = ("availability.dropout-rate=0.3", "round.over-selection=0.5", "round.quorum=0.1")
    whole, cut = tiny(*away, name="whole"), tiny(*away, name="cut")
    run_in_process(whole)
    save = server.round.loop.save_checkpoint

    def stop(*args: Any, round_number: int, **kwargs: Any) -> None:
        if round_number == 4:
            raise Stop
        save(*args, round_number=round_number, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(server.round.loop, "save_checkpoint", stop)
        with pytest.raises(Stop):
            run_in_process(cut)
    run_in_process(cut)
    assert (cut / "devices.csv").read_bytes() == (whole / "devices.csv").read_bytes()
    assert sum(int(row["failed"]) for row in accounts(cut).values()) > 0


def test_each_event_of_a_run_is_a_line_of_json_with_its_time_and_values(
    tiny: Make, device_grid: Grid
) -> None:
    folder = tiny("train.rounds=2", "train.clients-per-round=3", "round.max-update-norm=0.05")
    with pytest.raises(Exception, match="no round of 2"):
        run(folder, device_grid)
    (refused, *_), rounds = events(folder, "rejected"), events(folder, "round")
    assert (refused["level"], refused["round"], refused["client"]) == ("WARNING", 1, 101)
    assert "above the bound 0.05" in refused["reason"]
    assert refused["message"] == f"round 1: client 101: {refused['reason']}"
    assert [(e["round"], e["accepted"], e["rejected"]) for e in rounds] == [
        (1, False, 3),
        (2, False, 3),
    ]
    assert [e["round"] for e in events(folder, "unchanged")] == [1, 2]
    assert [e["bytes_each"] > 2_000_000 for e in events(folder, "backbone")] == [True]
    assert all(line["time"].endswith("Z") for line in events(folder))


def test_a_log_that_was_cut_off_in_a_line_goes_on_in_the_next(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "round"}\n{"event": "rou')
    with event_log(path):
        event("late", "100% late", client=7)
    whole, torn, last = path.read_text().splitlines()
    assert json.loads(whole) == {"event": "round"}
    assert torn == '{"event": "rou'
    assert json.loads(last)["message"] == "100% late"
    assert json.loads(last)["client"] == 7


def test_a_full_disk_ends_the_log_with_one_warning_and_not_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "fedhead")
    with event_log(Path("/dev/full")):
        for number in range(3):
            event("round", f"round {number}")
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == ["/dev/full ends here: No space left on device"]
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.INFO][-1] == "round 2"


@pytest.mark.parametrize("own", [logging.NOTSET, logging.ERROR])
def test_a_file_has_what_the_users_own_level_keeps_from_other_handlers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, own: int
) -> None:
    logger = logging.getLogger("fedhead")
    caplog.set_level(logging.WARNING)  # the root's
    caplog.set_level(own, "fedhead")
    files = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    with event_log(files[0]):
        with event_log(files[1]):
            event("round", "both")
        event("round", "first")
        event("lost", "a warning", level=logging.WARNING)
        event("ended", "an error", level=logging.ERROR)
    event("round", "neither")
    assert [len(file.read_text().splitlines()) for file in files] == [4, 1]
    warned = [] if own else ["a warning"]
    assert [record.getMessage() for record in caplog.records] == [*warned, "an error"]
    assert (logger.level, logger.filters) == (own, [])


@pytest.mark.slow
def test_a_devices_own_words_stay_on_one_line_of_the_log(tiny: Make, device_grid: Grid) -> None:
    class Liar(device_grid):  # type: ignore[valid-type,misc]
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            for reply in super().pull_messages(message_ids):
                report: Any = reply.content.get("report", {})
                is_train = reply.metadata.message_type == "train"
                if is_train and TrainReply.read(reply.content).clients == (101,):
                    report["reports"] = b""
                    report["rejected-client"] = [101]
                    report["rejected-reason"] = ["no\nround 1/9  accuracy 1.0000\x1b[2J" * 99]
                yield reply

    folder = tiny("train.rounds=1", "train.clients-per-round=3")
    run(folder, Liar)
    (refused,) = events(folder, "rejected")
    assert refused["reason"].startswith("no round 1/9  accuracy 1.0000 [2Jno ")
    assert len(refused["reason"]) == 300
