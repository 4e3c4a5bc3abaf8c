"""Whose answer a message is: no answer counts twice, for another or under a known id."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict

from client.app import app as client_app
from server.round.exchange import Exchange, error_reason
from simulations.engines.in_process import InProcessGrid
from tests.server.round.deployed import OPTIONS, Make, accounts, events, run
from tests.server.round.garden import NODES, Garden

pytestmark = pytest.mark.usefixtures("no_export", "logged")


@pytest.fixture
def devices(kept_devices: list[Path]) -> list[Path]:
    return kept_devices


def test_who_answers_twice_or_for_another_is_refused_and_the_first_answer_counts(
    tiny: Make, devices: list[Path], garden: Path
) -> None:
    class Twice(Garden):
        """attic gives each answer twice, and one in kitchen's place before it has spoken."""

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            replies = list(super().pull_messages(message_ids))
            mine = [r for r in replies if r.metadata.src_node_id == NODES["attic"]]
            forged = []
            for reply in replies:
                if mine and reply.metadata.src_node_id == NODES["kitchen"]:
                    false = Message(mine[0].content, reply_to=mine[0])
                    false.metadata.__dict__.update(
                        _reply_to_message_id=reply.metadata.reply_to_message_id,
                        _src_node_id=NODES["attic"],
                    )
                    forged.append(false)
            return [*forged, *replies, *mine]

    first, second = tiny(*OPTIONS, name="once"), tiny(*OPTIONS, name="twice")
    once, twice = run(first, Garden(devices), garden), run(second, Twice(devices), garden)
    assert once["valid_updates"] == twice["valid_updates"] == 6
    assert once["head_sha256"] == twice["head_sha256"]
    reasons = {e["reason"] for e in events(second, "refused")}
    assert reasons == {"answers a message twice", "answers a message that was sent to another node"}
    assert {e["name"] for e in events(second, "refused")} == {"attic"}
    rows = accounts(second)
    assert int(rows["attic"]["refused"]) >= 4
    assert rows["kitchen"]["refused"] == rows["hall"]["refused"] == "0"


def test_an_answer_that_is_nobodys_is_not_waited_for_twice() -> None:
    class Once(Garden):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            replies = list(super().pull_messages(message_ids))
            for reply in replies:
                reply.metadata.__dict__["_reply_to_message_id"] = "nobody's"
            return replies

    grid = Once.__new__(Once)
    InProcessGrid.__init__(grid, lambda m, c: Message(RecordDict(), reply_to=m), 1, {})  # type: ignore[arg-type]
    message = Message(RecordDict(), dst_node_id=1, message_type="query.describe")
    exchange = Exchange(grid, [message], 0.1)
    assert list(exchange) == []
    assert list(exchange.outstanding.values()) == [1]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("<class 'ValueError'>:<'out of\nbattery'>", "ValueError: out of battery"),
        ("<class 'common.errors.DataError'>:<'no such folder'>", "no such folder"),
        ("ClientApp stopped responding.", "ClientApp stopped responding."),
        ("", "error 2"),
    ],
)
def test_what_went_wrong_on_a_node_is_one_line(words: str, line: str) -> None:
    from flwr.app import Error

    message = Message(RecordDict(), dst_node_id=1, message_type="train")
    assert error_reason(Message(Error(2, words), reply_to=message)) == line


def test_no_two_messages_have_an_id_that_another_device_could_compute() -> None:
    class Silent(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            self.sent = [(m.metadata.group_id, m.object_id) for m in messages]
            return [name for _, name in self.sent]

    ids = set()
    for _ in range(3):
        grid = Silent(client_app, 1, {})
        message = Message(RecordDict(), dst_node_id=1, message_type="train", group_id="7")
        message.metadata.__dict__["_created_at"] = 1.0  # all that it says is known to others
        Exchange(grid, [message], 0.0)
        ((group, name),) = grid.sent
        assert group.startswith("7 ")
        ids.add(name)
    assert len(ids) == 3
