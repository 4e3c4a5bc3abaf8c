from pathlib import Path

import numpy as np
import pytest

from client.state import ControlStore
from common.errors import FedheadError

SHAPE = (2, 3)


def value(x: float) -> np.ndarray:
    return np.full(SHAPE, x, np.float32)


def test_starts_at_zero_and_remembers(tmp_path: Path) -> None:
    store = ControlStore(tmp_path)
    assert not store.load(7, 1, SHAPE).any()
    store.save(7, 1, value(1))
    np.testing.assert_array_equal(ControlStore(tmp_path).load(7, 2, SHAPE), value(1))
    assert not store.load(8, 2, SHAPE).any()


def test_a_client_that_is_ahead_steps_back(tmp_path: Path) -> None:
    store = ControlStore(tmp_path)
    store.save(7, 3, value(3))
    store.save(7, 5, value(5))
    # The server lost round 5 and asks for it again.
    np.testing.assert_array_equal(store.load(7, 5, SHAPE), value(3))
    store.save(7, 5, value(5.5))
    np.testing.assert_array_equal(store.load(7, 6, SHAPE), value(5.5))


def test_a_first_round_asked_again_starts_from_zero(tmp_path: Path) -> None:
    store = ControlStore(tmp_path)
    store.save(7, 2, value(2))
    assert not store.load(7, 2, SHAPE).any()


def test_keeps_the_last_two_rounds_and_says_when_more_is_asked(tmp_path: Path) -> None:
    store = ControlStore(tmp_path)
    for number in (1, 4, 6):
        store.save(7, number, value(number))
    assert sorted(p.name for p in (tmp_path / "7").iterdir()) == [
        "00000004.safetensors",
        "00000006.safetensors",
    ]
    with pytest.raises(FedheadError, match="client 7: the state before round 4 is gone"):
        store.load(7, 4, SHAPE)


def test_stepping_back_drops_what_never_happened(tmp_path: Path) -> None:
    store = ControlStore(tmp_path)
    for number in (3, 5):
        store.save(7, number, value(number))
    store.save(7, 4, value(4))
    np.testing.assert_array_equal(store.load(7, 9, SHAPE), value(4))


def test_damaged_file_names_client_and_path(tmp_path: Path) -> None:
    store = ControlStore(tmp_path)
    store.save(7, 1, value(1))
    path = tmp_path / "7" / "00000001.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(FedheadError, match=r"client 7: .*00000001\.safetensors is damaged"):
        store.load(7, 2, SHAPE)


def test_other_shape_is_refused(tmp_path: Path) -> None:
    ControlStore(tmp_path).save(7, 1, value(1))
    with pytest.raises(FedheadError, match=r"expected \(2, 4\)"):
        ControlStore(tmp_path).load(7, 2, (2, 4))
