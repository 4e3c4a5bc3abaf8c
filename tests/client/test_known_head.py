"""A device's last known head: whatever happens to it, no round starts from a wrong one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import common.files
from client.known_head import _HEAD, with_head
from common.codecs import find_codec
from common.codecs.downlink import add_change, encode_change
from common.errors import ProtocolError
from common.messages import MOST_CHANGES, HeadChanges, TrainRequest, head_id
from common.types import ClientPlan, Head, LocalTraining

K, D, SEED = 3, 40, 2
PLAN = ClientPlan(downlink="drive")
DRIVE = find_codec("drive")


class Course:
    """A server's course: what devices shall hold after each round from 0, and the changes."""

    def __init__(self, rounds: int, seed: int = 0) -> None:
        rng, held = np.random.default_rng(seed), np.zeros((K, D + 1), np.float32)
        self.heads, self.payloads = [Head.from_matrix(held)], []
        for number in range(1, rounds + 1):
            step = rng.normal(size=held.shape).astype(np.float32)
            self.payloads.append(encode_change(held, held + step, DRIVE, SEED, number))
            held = add_change(held, self.payloads[-1], DRIVE, SEED, number)
            self.heads.append(Head.from_matrix(held))

    def order(self, number: int, base: int | None = None, **changed: object) -> TrainRequest:
        """A round's request as it arrives, with the changes since ``base`` or the whole head."""
        head, changes = self.heads[number], None
        if base is not None:
            payloads = tuple(self.payloads[base:number])
            changes = HeadChanges(base, payloads, (K, D + 1), head_id(head))
            changes = replace(changes, **changed)  # type: ignore[arg-type]
        request = TrainRequest(
            head, PLAN, LocalTraining(0.1), (1,), number, "r", SEED, "f", "sum", changes=changes
        )
        return TrainRequest.read(request.write())


COURSE, OTHER = Course(8), Course(8, seed=1)


def holds(folder: Path, request: TrainRequest, number: int, course: Course = COURSE) -> bool:
    """Whether a device with this folder starts from the head of this round."""
    known = with_head(request, folder)
    return known is not None and known.head.sha256 == course.heads[number].sha256


def test_changes_lead_from_zero_or_from_the_last_head(tmp_path: Path) -> None:
    assert holds(tmp_path, COURSE.order(2, base=0), 2)
    assert holds(tmp_path, COURSE.order(5, base=2), 5)
    assert holds(tmp_path, COURSE.order(6), 6)  # the whole
    assert holds(tmp_path, COURSE.order(7, base=6), 7)


def test_a_device_whose_answer_was_lost_skips_the_changes_that_it_has(tmp_path: Path) -> None:
    assert holds(tmp_path, COURSE.order(3, base=0), 3)
    assert holds(tmp_path, COURSE.order(3, base=0), 3)  # the same message again
    assert holds(tmp_path, COURSE.order(5, base=1), 5)


def test_a_head_that_was_lost_is_asked_for(tmp_path: Path) -> None:
    assert with_head(COURSE.order(4, base=3), tmp_path) is None
    assert holds(tmp_path, COURSE.order(2), 2)
    assert with_head(COURSE.order(4, base=3), tmp_path) is None  # it is further back
    assert holds(tmp_path, COURSE.order(4), 4)
    assert holds(tmp_path, COURSE.order(5, base=4), 5)


def test_a_course_that_the_server_has_abandoned_is_left(tmp_path: Path) -> None:
    assert holds(tmp_path, COURSE.order(4), 4)
    assert with_head(OTHER.order(5, base=3), tmp_path) is None
    assert with_head(OTHER.order(3, base=2), tmp_path) is None  # the device is ahead
    assert holds(tmp_path, OTHER.order(3, base=0), 3, OTHER)  # zero is the same on any course
    assert holds(tmp_path, OTHER.order(4, base=3), 4, OTHER)


def test_a_failed_message_leaves_what_the_device_has(tmp_path: Path) -> None:
    assert holds(tmp_path, COURSE.order(3), 3)
    whole = COURSE.payloads[3]
    for payload in (b"", b"x", whole[:-1], whole + b"x", bytes(len(whole)), b"\xff" * len(whole)):
        assert with_head(COURSE.order(4, base=3, payloads=(payload,)), tmp_path) is None
    assert with_head(COURSE.order(4, base=3, head_id="0" * 16), tmp_path) is None
    assert with_head(COURSE.order(4, base=3, shape=(K, D)), tmp_path) is None
    assert holds(tmp_path, COURSE.order(4, base=3), 4)


Damage = Callable[[Path], object]


def rewrite(path: Path, round_number: np.ndarray) -> None:
    """A file with a right checksum, and with what is no round."""
    _HEAD.write(path, {**_HEAD.read(path), "round": round_number})


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: rewrite(path, np.array([3, 3])),
        lambda path: rewrite(path, np.array(np.inf)),
    ],
)
def test_a_damaged_file_is_no_head(tmp_path: Path, damage: Damage) -> None:
    assert holds(tmp_path, COURSE.order(3), 3)
    (path,) = tmp_path.iterdir()
    damage(path)
    assert with_head(COURSE.order(4, base=3), tmp_path) is None
    assert holds(tmp_path, COURSE.order(4), 4)  # even if it cannot be kept
    assert holds(tmp_path, COURSE.order(5, base=0), 5)


def test_a_device_that_is_killed_while_it_writes_has_the_head_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    assert holds(tmp_path, COURSE.order(3), 3)
    with monkeypatch.context() as patch:
        patch.setattr(common.files.os, "replace", kill)
        with pytest.raises(Killed):
            with_head(COURSE.order(4, base=3), tmp_path)
    assert holds(tmp_path, COURSE.order(4, base=3), 4)


def test_plain_heads_are_not_kept(tmp_path: Path) -> None:
    request = replace(COURSE.order(4), plan=ClientPlan())
    assert with_head(request, tmp_path) is request
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("changes", [1], "changes is no list of payloads"),
        ("changes", b"x", "changes is no list of payloads"),
        ("changes", [b""] * (MOST_CHANGES + 1), "lists 1001 changes, expected at most 1000"),
        ("base", None, "base is None, expected a round"),
        ("base", -1, "base is -1, expected a round"),
        ("base", 1.0, "base is 1.0, expected a round"),
        ("head-id", None, "head-id is missing"),
        ("head-id", b"x", "head-id is missing"),
        ("shape", None, "shape is missing"),
        ("shape", [3], "shape is .3., expected that of a head"),
    ],
)
def test_changes_that_are_none_are_refused(key: str, value: object, message: str) -> None:
    content = replace(COURSE.order(4), changes=HeadChanges(3, (b"",), (K, D + 1), "0" * 16)).write()
    shared = content["shared"]
    if value is None:
        del shared[key]  # type: ignore[attr-defined]
    else:
        shared[key] = value  # type: ignore[index]
    with pytest.raises(ProtocolError, match=message):
        TrainRequest.read(content)


def test_a_message_cannot_make_a_device_fill_its_memory(tmp_path: Path) -> None:
    with pytest.raises(ProtocolError, match="expected fewer numbers"):
        with_head(COURSE.order(4, base=0, shape=(2**20, 2**20)), tmp_path)
