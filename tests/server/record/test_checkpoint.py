import dataclasses
import subprocess
from pathlib import Path

import numpy as np
import pytest

from common.errors import RunError
from common.types import Head
from server.record.checkpoint import load_latest, restore_state, save_checkpoint

HEAD = Head(np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1, -1], np.float32))


@dataclasses.dataclass(frozen=True, eq=False)
class Inner:
    momentum: np.ndarray
    count: int


@dataclasses.dataclass(frozen=True, eq=False)
class State:
    inner: Inner
    seen: tuple[int, ...]
    total: np.ndarray


def state(x: float, n: int) -> State:
    return State(Inner(np.full(4, x, np.float32), n), tuple(range(n)), np.array([n], np.uint64))


def save(folder: Path, number: int, keep: int = 3) -> None:
    save_checkpoint(
        folder,
        round_number=number,
        head=HEAD,
        state=state(number / 2, number),
        counters={"uplink-bytes": 10.0 * number},
        keep=keep,
    )


def test_round_trip_keeps_every_bit_of_nested_state(tmp_path: Path) -> None:
    save(tmp_path, 3)
    checkpoint = load_latest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.round_number == 3
    assert checkpoint.head.sha256 == HEAD.sha256
    assert checkpoint.counters == {"uplink-bytes": 30.0}
    restored = restore_state(state(0, 0), checkpoint)
    assert (restored.inner.count, restored.seen) == (3, (0, 1, 2))
    np.testing.assert_array_equal(restored.inner.momentum, np.full(4, 1.5, np.float32))
    assert restored.total.dtype == np.uint64


def test_the_last_n_are_kept(tmp_path: Path) -> None:
    for number in range(1, 6):
        save(tmp_path, number, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000004", "000005"]


FILES = ["head.safetensors", "state.safetensors", "meta.json", "SHA256SUMS"]


def damage(path: Path, how: str, position: float = 0.5) -> None:
    data = bytearray(path.read_bytes())
    if how == "remove":
        path.unlink()
    elif how == "truncate":
        path.write_bytes(data[: int(len(data) * position)])
    else:
        data[int(len(data) * position)] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("how", ["truncate", "flip", "remove"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, file: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    for position in (0.0, 0.1, 0.5, 0.9, 0.999):
        save(tmp_path, 2)
        damage(tmp_path / "000002" / file, how, position)
        caplog.clear()
        checkpoint = load_latest(tmp_path)
        assert checkpoint is not None
        assert (checkpoint.round_number, checkpoint.counters["uplink-bytes"]) == (1, 10)
        assert "000002 is damaged" in caplog.text


def test_two_damaged_checkpoints_fall_back_two_rounds_and_are_dropped_later(tmp_path: Path) -> None:
    for number in range(1, 6):
        save(tmp_path, number)
    for number in (4, 5):
        damage(tmp_path / f"{number:06d}" / "state.safetensors", "flip")
    checkpoint = load_latest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.round_number == 3
    save(tmp_path, 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000003", "000004"]


def test_the_sums_are_what_sha256sum_checks(tmp_path: Path) -> None:
    save(tmp_path, 1)
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(command, cwd=tmp_path / "000001", check=False).returncode == 0
    names = {path.name for path in (tmp_path / "000001").iterdir()}
    assert {*names} == {*FILES}


def test_only_damaged_checkpoints_are_an_error_and_none_is_none(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    save(tmp_path, 1)
    (tmp_path / "000001" / "meta.json").unlink()
    with pytest.raises(RunError, match="all 1 checkpoints are damaged"):
        load_latest(tmp_path)


def test_state_of_another_strategy_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 1)
    checkpoint = load_latest(tmp_path)
    assert checkpoint is not None

    @dataclasses.dataclass(frozen=True, eq=False)
    class Other:
        control: np.ndarray

    with pytest.raises(RunError, match="has no 'control'"):
        restore_state(Other(np.zeros(1)), checkpoint)
    wrong = dataclasses.replace(state(0, 0), total=np.zeros(2, np.uint64))
    with pytest.raises(RunError, match="total is uint64"):
        restore_state(wrong, checkpoint)


def test_an_interrupted_write_leaves_no_half_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def full(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["000001"]
