"""Flower's own grid, given bytes that a device may push in place of a reply."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    add_header_to_object_body,
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
)
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import http_grid
from google.protobuf.message import DecodeError

from server.round.unreadable import survive_unreadable_replies


def reply(content: Any) -> Message:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    asked = Message(RecordDict(), dst_node_id=7, message_type="train")
    asked.metadata.__dict__["_message_id"] = "asked"
    answer = Message(RecordDict(), reply_to=asked)
    answer.__dict__["_content"] = content
    return answer


class Pushed:
    """What a SuperLink has got from devices: replies, as trees and as objects by id."""

    def __init__(self) -> None:
        self.messages_list: list[Any] = []
        self.message_object_trees: list[Any] = []
        self.objects: dict[str, bytes] = {}

    def add(self, message: Message, body: bytes | None = None) -> None:
        tree = get_object_tree(message)
        proto = message_to_proto(remove_content_from_message(message))
        self.objects |= {i: o.deflate() for i, o in get_all_nested_objects(message).items()}
        if body is not None:  # the header is right, and so the SuperLink took it
            foreign = add_header_to_object_body(body, message)
            tree.object_id = get_object_id(foreign)
            self.objects[tree.object_id] = foreign
        proto.metadata.message_id = tree.object_id
        self.messages_list.append(proto)
        self.message_object_trees.append(tree)

    def PullMessages(self, request: Any) -> Any:  # noqa: N802
        return self

    def PullObject(self, request: Any) -> Any:  # noqa: N802
        content = self.objects[request.object_id]
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request: Any) -> None:  # noqa: N802
        pass


def pull(pushed: Pushed) -> list[Message]:
    grid: Any = http_grid.HttpGrid.__new__(http_grid.HttpGrid)
    grid._client, grid._run = pushed, SimpleNamespace(run_id=1)
    grid.node = Node(node_id=1)
    return list(grid.pull_messages(["asked"]))


def test_a_reply_that_cannot_be_read_costs_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    known: Any = http_grid.inflate_object_from_contents  # type: ignore[attr-defined]
    monkeypatch.setattr(http_grid, "inflate_object_from_contents", known)  # puts it back
    honest = RecordDict({"report": ConfigRecord({"present": True})})
    pushed = Pushed()
    pushed.add(reply(honest), body=b"\xff\xff\xff")
    pushed.add(reply(Array(np.zeros(3, np.float32))))  # no record at all
    pushed.add(reply(honest))
    with pytest.raises(DecodeError):
        pull(pushed)
    survive_unreadable_replies()
    answers = [m for m in pull(pushed) if m.metadata.reply_to_message_id == "asked"]
    assert len(answers) == 1
    assert answers[0].content["report"] == honest["report"]
    assert caplog.text.count("cannot be read and is ignored") == 2
