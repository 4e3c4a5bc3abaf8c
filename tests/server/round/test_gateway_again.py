"""A gateway that is silent, fails or lost a message is asked again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Error, Message, RecordDict

from common.messages import DescribeRequest, TrainRequest
from server.round import descriptions
from server.round.descriptions import Descriptions
from server.round.exchange import Again, Exchange
from simulations.engines.in_process import InProcessGrid
from tests.server.round.deployed import HALL, Make, events, metrics, run
from tests.server.town import Town, register

pytestmark = pytest.mark.usefixtures("no_export", "logged", "described_again_at_once")


def test_a_lost_message_is_sent_again_and_the_round_is_whole(
    tiny: Make, folders: dict[str, Path], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.round.gateways._SOONEST_SECONDS", 0.5)
    grid = Town(folders)
    grid.lost = 1
    folder = tiny("train.rounds=1", "train.clients-per-round=0", "round.deadline-seconds=60")
    monkeypatch.setattr("server.round.gateways._SHARE", 0.01)
    summary = run(folder, grid, place)
    first, second = grid.asked(TrainRequest)
    assert (
        replace(first, seconds=0.0).write()["config"]
        == replace(second, seconds=0.0).write()["config"]
    )
    assert second.seconds < first.seconds
    assert summary["valid_updates"] == 3
    assert events(folder, "refused") == []


class Slow(InProcessGrid):
    """One node, whose replies can be fetched only once they are let go."""

    def __init__(self) -> None:
        super().__init__(lambda m, _: Message(RecordDict(), reply_to=m), 1, {})  # type: ignore[arg-type]
        self.sent: list[str] = []
        self.pulled: list[str] = []
        self.free: Callable[[], Iterable[str]] = list

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names = list(super().push_messages(messages))
        self.sent += names
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        names = [name for name in message_ids if name in set(self.free())]
        self.pulled += names
        return super().pull_messages(names)


def exchange(
    grid: Slow, seconds: float, pause: float, refused: list[Any] | None = None
) -> Exchange:
    def message(_node: int = 1) -> Message:
        return Message(RecordDict(), dst_node_id=1, message_type="train")

    def refuse(*words: Any) -> None:
        if refused is not None:
            refused.append(words)

    return Exchange(grid, [message()], seconds, refuse=refuse, again=Again([1], pause, message))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_whichever_answer_comes_first_counts_and_the_others_are_no_cheating(which: int) -> None:
    grid, refused = Slow(), list[Any]()
    grid.free = lambda: (
        grid.sent[which : which + 1] if which < 2 else grid.sent if len(grid.sent) > 2 else []
    )
    found = list(exchange(grid, 60, 0.1, refused))
    assert [node for node, _ in found] == [1]
    assert refused == []


def test_what_flower_says_in_a_gateways_place_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.round.exchange._SOON_SECONDS", 0.1)
    grid = Slow()
    answer = grid._app
    errors = [Error(8, "crashed"), Error(5, "away")]
    grid._app = lambda m, c: Message(errors.pop(), reply_to=m) if errors else answer(m, c)  # type: ignore[assignment]
    grid.free = lambda: grid.sent
    ((node, reply),) = exchange(grid, 60, 30)
    assert (node, reply.has_error()) == (1, False)
    assert len(grid.sent) == 3


def test_a_gateways_own_error_is_its_answer() -> None:
    grid = Slow()
    grid._app = lambda m, _: Message(Error(2, "no files"), reply_to=m)  # type: ignore[assignment]
    grid.free = lambda: grid.sent
    ((_, reply),) = exchange(grid, 60, 30)
    assert reply.error.reason == "no files"
    assert len(grid.sent) == 1


def test_a_silent_gateway_is_asked_again_until_the_deadline() -> None:
    grid = Slow()
    silent = exchange(grid, 1.0, 0.2)
    assert list(silent) == []
    assert len(grid.sent) >= 3
    assert set(silent.outstanding.values()) == {1}


def test_a_silent_gateways_phones_are_no_stragglers_and_its_silence_is_one_line(
    tiny: Make, folders: dict[str, Path], place: Path
) -> None:
    register(place, "hall", HALL)
    grid = Town(folders, {HALL: folders["anna"]})
    grid.lost = 1
    folder = tiny(
        "train.rounds=2",
        "train.clients-per-round=0",
        "round.quorum=0.2",
        "round.deadline-seconds=3",
    )
    run(folder, grid, place)
    first, second = metrics(folder)
    assert (first["dropouts"], first["valid"]) == ({"silent": 3}, 1)
    assert (second["dropouts"], second["valid"]) == ({}, 4)
    (told,) = events(folder, "failed")
    assert told["message"] == "round 1: gateway, 3 phones: no answer"


def test_a_gateway_is_described_again_after_some_seconds_and_if_a_question_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(descriptions, "_CHANGED_SECONDS", 5.0)
    monkeypatch.setattr(descriptions, "time", SimpleNamespace(monotonic=lambda: now))
    grid, request = Slow(), DescribeRequest("run", ("a", "b"), 0.1, 3)
    asking = Descriptions(grid, request, "f" * 64, {1}.__contains__, print)
    grid.free = lambda: grid.sent
    assert asking.due({1, 2}, {2}) == [1, 2]
    answers, _ = asking.ask([1], 0.0)
    assert answers.keys() == {1}
    now += 4.9
    assert asking.due({1, 2}, set()) == []
    now += 0.2
    assert asking.due({1, 2}, set()) == [1]
    grid.free = list
    assert asking.ask([1], 0.0) == ({}, {})
    assert asking.is_waiting
    now += 14.9
    assert asking.due({1}, set()) == []
    now += 0.2
    assert asking.due({1}, set()) == [1]
    assert asking.ask([1], 0.0) == ({}, {})
    grid.free = lambda: grid.sent[-1:]
    answers, _ = asking.ask([], 0.0)
    assert answers.keys() == {1}
    assert not asking.is_waiting  # the lost question is not waited for
