from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.client_round import ClientRound
from client.memory import ClientMemory, with_constant
from common.corrections import CORRECTIONS, Correction
from common.errors import FedheadError, ProtocolError, ReplyError
from common.messages import TrainRequest, content_id
from common.types import ClientPlan, Head, LocalTraining

SHAPE = (2, 3)
SHAPES = {"control": SHAPE, "count": (1,)}


def value(x: float) -> np.ndarray:
    return np.full(SHAPE, x, np.float32)


def arrays(x: float) -> dict[str, np.ndarray]:
    return {"control": value(x), "count": np.array([x], np.float32)}


def assert_is(memory: Mapping[str, np.ndarray], x: float) -> None:
    assert set(memory) == set(SHAPES)
    for name, array in arrays(x).items():
        np.testing.assert_array_equal(memory[name], array)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "7").iterdir())


def test_starts_at_zero_and_remembers(tmp_path: Path) -> None:
    store = ClientMemory(tmp_path)
    assert_is(store.load(7, 0, SHAPES), 0)
    store.save(7, 1, arrays(1), counted_round=0, oldest_round=0)
    assert_is(ClientMemory(tmp_path).load(7, 1, SHAPES), 1)
    assert_is(store.load(8, 0, SHAPES), 0)


def test_a_round_that_did_not_count_is_as_if_it_had_never_been(tmp_path: Path) -> None:
    store = ClientMemory(tmp_path)
    store.save(7, 3, arrays(3), counted_round=0, oldest_round=0)
    store.save(7, 5, arrays(5), counted_round=3, oldest_round=0)  # refused, or lost with the server
    assert_is(store.load(7, 3, SHAPES), 3)
    store.save(7, 6, arrays(6), counted_round=3, oldest_round=0)
    assert names(tmp_path) == ["00000003.safetensors", "00000006.safetensors"]


def test_files_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    store = ClientMemory(tmp_path)
    store.save(7, 3, arrays(3), counted_round=0, oldest_round=0)
    for name in ("._00000003.safetensors", "copy (1).safetensors"):
        (tmp_path / "7" / name).touch()
    store.save(7, 4, arrays(4), counted_round=3, oldest_round=0)
    assert_is(store.load(7, 4, SHAPES), 4)
    assert len(names(tmp_path)) == 4


def test_a_first_round_asked_again_starts_from_zero(tmp_path: Path) -> None:
    store = ClientMemory(tmp_path)
    store.save(7, 2, arrays(2), counted_round=0, oldest_round=0)
    assert_is(store.load(7, 0, SHAPES), 0)


def test_keeps_what_counted_and_what_is_new(tmp_path: Path) -> None:
    store = ClientMemory(tmp_path)
    for number, counted in ((1, 0), (4, 1), (6, 4)):
        store.save(7, number, arrays(number), counted_round=counted, oldest_round=number - 1)
    assert names(tmp_path) == ["00000004.safetensors", "00000006.safetensors"]
    with pytest.raises(FedheadError, match="client 7: its state after round 1 is missing"):
        store.load(7, 1, SHAPES)


def test_keeps_what_the_server_may_go_back_to(tmp_path: Path) -> None:
    store = ClientMemory(tmp_path)
    for number, counted, oldest in ((1, 0, 0), (4, 1, 1), (6, 4, 3), (7, 4, 4), (8, 7, 5)):
        store.save(7, number, arrays(number), counted_round=counted, oldest_round=oldest)
        # What counted at the end of every round from the oldest on.
        for end, wanted in {3: 1, 4: 4, 5: 4, 6: 4, 7: 7}.items():
            if oldest <= end < number:
                assert_is(store.load(7, wanted, SHAPES), wanted)
    assert names(tmp_path) == [f"{n:08d}.safetensors" for n in (4, 7, 8)]
    store.save(7, 6, arrays(-6), counted_round=4, oldest_round=3)  # the server has gone back
    assert names(tmp_path) == [f"{n:08d}.safetensors" for n in (4, 6)]
    assert_is(store.load(7, 6, SHAPES), -6)


def test_damaged_file_names_client_and_path(tmp_path: Path) -> None:
    store = ClientMemory(tmp_path)
    store.save(7, 1, arrays(1), counted_round=0, oldest_round=0)
    path = tmp_path / "7" / "00000001.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(FedheadError, match=r"client 7: .*00000001\.safetensors is damaged"):
        store.load(7, 1, SHAPES)


def test_other_arrays_are_refused(tmp_path: Path) -> None:
    ClientMemory(tmp_path).save(7, 1, arrays(1), counted_round=0, oldest_round=0)
    for shapes in ({**SHAPES, "control": (2, 4)}, {"control": SHAPE}, {**SHAPES, "more": (1,)}):
        with pytest.raises(FedheadError, match=r"client 7: .*holds \{'control': \(2, 3\), 'count"):
            ClientMemory(tmp_path).load(7, 1, shapes)


def test_a_disk_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "7").write_text("a file where a folder should be")
    with pytest.raises(FedheadError, match="client 7: .* cannot be written"):
        ClientMemory(tmp_path).save(7, 1, arrays(1), counted_round=0, oldest_round=0)


def asks(constant: dict[str, np.ndarray], *, has_constant: bool) -> TrainRequest:
    return TrainRequest(
        Head.zeros(2, 2), ClientPlan(constant=constant), LocalTraining(0.1, 1, 8), (7,), 1, "r", 0,
        "f", "sum", constant_id=content_id(constant), has_constant=has_constant,
    )  # fmt: skip


def sent(request: TrainRequest) -> TrainRequest:
    return TrainRequest.read(request.write())


def test_constant_arrays_are_sent_once(tmp_path: Path) -> None:
    first = sent(asks({"preconditioner": value(1)}, has_constant=True))
    later = sent(asks({"preconditioner": value(1)}, has_constant=False))
    assert not later.plan.constant
    assert with_constant(later, tmp_path, durable=True) is None  # nobody has brought them yet
    assert with_constant(first, tmp_path, durable=True) is first
    kept = with_constant(later, tmp_path, durable=True)
    assert kept is not None
    np.testing.assert_array_equal(kept.plan.constant["preconditioner"], value(1))
    other = sent(asks({"preconditioner": value(2)}, has_constant=False))
    assert with_constant(other, tmp_path, durable=True) is None


def test_a_run_keeps_one_plans_constant_arrays(tmp_path: Path) -> None:
    for x in (1, 2, 3):
        with_constant(asks({"preconditioner": value(x)}, has_constant=True), tmp_path, durable=True)
    (kept,) = tmp_path.glob("constant-*")
    assert content_id({"preconditioner": value(3)}) in kept.name


def test_what_is_not_finite_is_never_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt = Correction({"control": lambda k, d: (k, d + 1)}, lambda _: {"control": value(np.nan)})
    monkeypatch.setitem(CORRECTIONS, "spoilt", spoilt)  # type: ignore[arg-type]
    plan = ClientPlan(correction="spoilt")  # type: ignore[arg-type]
    request = TrainRequest(
        Head.zeros(2, 2), plan, LocalTraining(0.1, 1, 8), (7,), 1, "r", 0, "f", "sum",
        memory_rounds=(0,),
    )  # fmt: skip
    with pytest.raises(ReplyError, match="control is not finite"):
        ClientRound(request, ClientMemory(tmp_path)).finish(7, value(0), steps=1, loss=1.0)
    assert not any(tmp_path.iterdir())


def test_damaged_constant_arrays_are_asked_for_again(tmp_path: Path) -> None:
    request = asks({"preconditioner": value(1)}, has_constant=True)
    with_constant(request, tmp_path, durable=True)
    (path,) = tmp_path.iterdir()
    for damage in (path.read_bytes()[:-1], path.read_bytes()[:-1] + b"x", b""):
        path.write_bytes(damage)
        assert (
            with_constant(sent(replace(request, has_constant=False)), tmp_path, durable=True)
            is None
        )


def test_constant_arrays_under_a_false_name_are_refused(tmp_path: Path) -> None:
    request = asks({"preconditioner": value(1)}, has_constant=True)
    with pytest.raises(ProtocolError, match="do not match its constant-id"):
        with_constant(replace(request, constant_id="0" * 64), tmp_path, durable=True)
    with pytest.raises(ProtocolError, match="not a SHA-256"):
        with_constant(replace(request, constant_id="../x"), tmp_path, durable=True)
    assert not list(tmp_path.iterdir())
