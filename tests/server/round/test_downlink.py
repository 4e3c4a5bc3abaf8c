"""What clients are sent of the head: the changes since theirs, or the whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.known_head import with_head
from common.codecs import CODECS, Codec, find_codec
from common.codecs.downlink import add_change, encode_change
from common.config.codec import CodecConfig
from common.errors import ConfigError, ReplyError
from common.messages import MOST_CHANGES, TrainRequest
from common.seeding import Purpose, stream_state
from common.types import ClientPlan, FloatArray, Head, Layout, LocalTraining
from server.round.codecs import check_codecs
from server.round.downlink import Downlink, Sent, advanced, unsent
from server.strategies import fedavg, first_plan

K, D, SEED = 3, 200, 5
PLAN = ClientPlan(downlink="drive")


def walk(rounds: int, seed: int = 0) -> list[Head]:
    """Heads of a run that begins at zero and moves on by about as much in each round."""
    steps = np.random.default_rng(seed).normal(size=(rounds - 1, K, D + 1))
    places = np.concatenate([np.zeros((1, K, D + 1)), steps.cumsum(0)])
    return [Head.from_matrix(place.astype(np.float32)) for place in places]


def order(head: Head, downlink: Downlink, client: int, number: int, plan: ClientPlan = PLAN,
          *, whole: bool = False) -> TrainRequest:  # fmt: skip
    """The request to a device, as it arrives."""
    base = None if whole else downlink.base(plan, client)
    request = TrainRequest(
        head, plan, LocalTraining(0.1), (client,), number, "r", SEED, "f", "sum",
        changes=downlink.changes(head, base),
    )  # fmt: skip
    return TrainRequest.read(request.write())


def test_every_device_holds_what_a_second_computation_says(tmp_path: Path) -> None:
    codec, rng = find_codec("eden"), np.random.default_rng(1)
    plan, downlink = ClientPlan(downlink="eden"), Downlink(SEED, unsent(Head.zeros(K, D)))
    held, wholes, parts = np.zeros((K, D + 1), np.float32), 0, 0
    for number, head in enumerate(walk(40), 1):
        # What all devices shall hold after this round, from the definition.
        for part in range(9 if number > 1 else 0):
            missing = head.matrix - held
            if part and (missing**2).sum() <= 0.25**2 * (head.matrix**2).sum():
                break
            seed = stream_state(SEED, Purpose.DOWNLINK, number, part)
            y = codec.decode(codec.encode(missing, seed), Layout(missing.shape), seed)
            wide = y.astype(np.float64)
            held = held + np.float32((wide * missing).sum() / (wide * wide).sum()) * y
        sent = downlink.send(head, plan, number)
        cohort = rng.choice(12, 2, replace=False).tolist()
        for client in cohort:
            request = order(sent, downlink, client, number, plan)
            parts, wholes = parts + bool(request.changes), wholes + (not request.changes)
            known = with_head(request, tmp_path / str(client))
            assert known is not None
            assert known.head.matrix.tobytes() == held.tobytes()
            assert known.changes is None
        downlink.note(plan, cohort, number)
    assert wholes > 5
    assert parts > 20


@pytest.mark.parametrize("name", ["drive", "eden", "int8"])
def test_errors_do_not_add_up(name: str) -> None:
    heads, sent, errors = walk(51), unsent(Head.zeros(K, D)), []
    for number, head in enumerate(heads, 1):
        sent = advanced(sent, head, number, name, SEED)
        errors.append(np.linalg.norm(head.matrix - sent.matrix))
    step = np.sqrt(K * (D + 1))
    # One bit misses q = 0.6 of a change: at most q / (1 - q) steps.
    assert max(errors) < 1.6 * step
    assert min(errors[1:]) > 0
    for number in range(52, 82):  # it stands still, and its devices catch up
        sent = advanced(sent, heads[-1], number, name, SEED)
    assert np.linalg.norm(heads[-1].matrix - sent.matrix) < 1e-5 * step


def one_in_twenty(array: FloatArray, seed: int) -> bytes:
    """Twenty times every twentieth number at random: unbiased, and 19 times as far off."""
    kept = np.random.default_rng(seed).random(array.shape) < 0.05
    return (20 * array * kept).astype("<f4").tobytes()


def plain(payload: bytes, layout: Layout, _seed: int) -> FloatArray:
    return np.frombuffer(payload, "<f4", np.prod(layout.shape)).reshape(layout.shape)


SPARSE = Codec("sparse", one_in_twenty, plain)  # type: ignore[arg-type]


def test_even_a_codec_whose_error_is_larger_than_the_change_brings_devices_no_further_off() -> None:
    head = walk(2)[1].matrix
    held, before = np.zeros_like(head), np.inf
    for number in range(8):
        change = encode_change(held, head, SPARSE, SEED, number)
        held = add_change(held, change, SPARSE, SEED, number)
        error = float(np.linalg.norm(head - held))
        assert error <= before
        before = error
    assert before < 0.25 * np.linalg.norm(head)


@pytest.mark.parametrize(("name", "parts"), [("drive", 3), ("eden", 2), ("int8", 1), ("sparse", 8)])
def test_a_head_that_jumps_is_sent_in_more_parts(
    monkeypatch: pytest.MonkeyPatch, name: str, parts: int
) -> None:
    monkeypatch.setitem(CODECS, "sparse", SPARSE)
    codec, (zero, jump) = find_codec(name), (head.matrix for head in walk(2))
    change = encode_change(zero, jump, codec, SEED, 2)
    one = 8 + len(codec.encode(jump, 0))
    assert len(change) == parts * one
    held = add_change(zero, change, codec, SEED, 2)
    missing = float(np.linalg.norm(jump - held) / np.linalg.norm(jump))
    assert missing < 0.25 or parts == 8
    # The next step is a tenth as large: one part is enough.
    step = encode_change(held, jump + 0.1 * walk(2, seed=1)[1].matrix, codec, SEED, 3)
    assert len(step) == one or parts == 8


def test_who_missed_too_much_gets_the_whole_head() -> None:
    downlink, whole = Downlink(SEED, unsent(Head.zeros(K, D))), 4 * K * (D + 1)
    sizes = {}
    for number, head in enumerate(walk(60), 1):
        sent = downlink.send(head, PLAN, number)
        (last,) = downlink.sent.since(number - 1) or (b"",)
        sizes[number] = len(last)
    given = []
    for base in range(60):
        downlink.rounds[7] = base
        changes = downlink.changes(sent, downlink.base(PLAN, 7))
        given.append(changes is not None)
        assert given[-1] == (sum(sizes[n] for n in range(base + 1, 61)) < whole)
        assert changes is None or [len(c) for c in changes.payloads] == [
            sizes[n] for n in range(base + 1, 61)
        ]
    assert 10 < sum(given) < 50
    assert downlink.sent.changes.nbytes <= whole  # more is never sent, and not kept


def test_a_head_that_does_not_change_costs_nothing() -> None:
    sent = unsent(Head.zeros(K, D))
    for number in range(1, MOST_CHANGES + 100):
        sent = advanced(sent, Head.zeros(K, D), number, "drive", SEED)
    assert sent.since(sent.round_number - MOST_CHANGES) == (b"",) * MOST_CHANGES
    assert sent.since(1) is None
    assert not sent.changes.size


@pytest.mark.parametrize("first", [1, 9])
def test_the_whole_head_is_exact_where_changes_have_no_beginning(first: int) -> None:
    # A run that starts from another's head, and a round after one of another codec.
    head = walk(5)[-1]
    downlink = Downlink(SEED, unsent(head))
    sent = downlink.send(head, PLAN, first)
    assert sent.sha256 == head.sha256
    assert downlink.base(PLAN, 3) is None
    downlink.note(PLAN, [3], first)
    later = downlink.send(walk(6)[-1], PLAN, first + 1)
    assert downlink.base(PLAN, 3) == first
    assert downlink.base(PLAN, 4) is None
    assert later.sha256 not in (head.sha256, walk(6)[-1].sha256)
    other = ClientPlan(downlink="eden")
    assert downlink.send(head, other, first + 2).sha256 == head.sha256
    assert downlink.base(other, 3) is None


def test_without_a_codec_nothing_is_kept() -> None:
    head = walk(3)[-1]
    downlink = Downlink(SEED, unsent(head))
    assert downlink.send(head, ClientPlan(), 1) is head
    downlink.note(ClientPlan(), [1], 1)
    assert downlink.base(ClientPlan(), 1) is None
    assert (downlink.rounds, downlink.sent.round_number) == ({}, 0)


def test_a_codec_that_saves_nothing_or_overflows_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def long(array: FloatArray, _seed: int) -> bytes:
        return array.astype("<f4").tobytes() + b"more"

    def infinite(payload: bytes, layout: Layout, seed: int) -> FloatArray:
        return np.full(layout.shape, np.inf, np.float32)

    head, half = walk(2)[1], find_codec("none").encode
    for name, encode, decode in (("long", long, plain), ("infinite", half, infinite)):
        monkeypatch.setitem(CODECS, name, Codec(name, encode, decode))  # type: ignore[arg-type]
        start = advanced(unsent(head), Head.zeros(K, D), 1, name, SEED)
        sent = advanced(start, head, 2, name, SEED)
        assert sent.matrix.tobytes() == head.matrix.tobytes()
        assert sent.since(1) is None


def test_changes_are_not_changed_by_adding_them() -> None:
    codec, (head, other) = find_codec("drive"), (h.matrix for h in walk(3)[1:])
    before, there = head.copy(), other.copy()
    change = encode_change(head, other, codec, SEED, 1)
    add_change(head, change, codec, SEED, 1)
    np.testing.assert_array_equal(head, before)
    np.testing.assert_array_equal(other, there)
    empty = bytes(8)
    for foreign in (b"x", bytes(7), change[:-1], change + b"x", 9 * change, empty, bytes(72)):
        with pytest.raises(ReplyError, match="change"):
            add_change(head, foreign, codec, SEED, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dive", "codec.down='dive': unknown codec 'dive', did you mean drive?"),
        ("counts", "codec.down='counts': it is for statistics, and clients are sent a head"),
        ("shared", "codec.down='shared': it is for sums of what many clients send"),
    ],
)
def test_a_codec_that_does_not_suit_a_head_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    drive = find_codec("drive")
    monkeypatch.setitem(CODECS, "counts", replace(drive, name="counts", carries="u"))
    monkeypatch.setitem(CODECS, "shared", replace(drive, name="shared", adds_up=True))
    own = fedavg()
    with pytest.raises(ConfigError) as caught:
        check_codecs(CodecConfig(down=name), own, first_plan(own))
    assert message in str(caught.value)
    for allowed in ("", "none", "drive", "eden", "int8"):
        check_codecs(CodecConfig(down=allowed), own, first_plan(own))


def test_what_was_sent_is_cut_where_it_was_joined() -> None:
    changes = np.arange(9, dtype=np.uint8)
    sent = Sent(7, np.zeros((K, D + 1), np.float32), np.array([2, 0, 7]), changes)
    assert sent.base == 4
    assert sent.since(4) == (b"\0\1", b"", bytes(range(2, 9)))
    assert sent.since(6) == (bytes(range(2, 9)),)
    assert sent.since(7) == ()
    assert sent.since(3) is None
