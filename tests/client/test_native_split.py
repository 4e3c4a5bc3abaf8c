"""What the C++ phone decides for itself: its test part, the order of visits, a clipped update."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.partition import evenly, local_split
from common.privacy.integers import clipped, is_within, with_offset
from common.seeding import batch_order, batch_seed

pytestmark = pytest.mark.wide

FOLDER = Path(__file__).parent
SOURCE = FOLDER.parent.parent / "client" / "native" / "phone"


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Any:
    if shutil.which("c++") is None:
        pytest.skip("c++ is not installed: apt-get install g++")
    path = tmp_path_factory.mktemp("split") / "split.so"
    files = [SOURCE / "split.cpp", SOURCE / "trainer.cpp", FOLDER / "split_probe.cpp"]
    flags = ["-std=c++20", "-O1", "-shared", "-fPIC", "-ffp-contract=off", f"-I{SOURCE}"]
    done = subprocess.run(
        ["c++", *flags, *map(str, files), "-o", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(path))
    u64, f64, array = ctypes.c_uint64, ctypes.c_double, ctypes.c_void_p
    library.local_split.argtypes = [array, u64, f64, u64, u64, array]
    library.batch_order.argtypes = [u64, u64, u64, array]
    library.evenly.argtypes, library.evenly.restype = [u64, u64, array], u64
    library.clipped.argtypes = [array, u64, f64, array]
    return library


def test_a_phones_own_test_part_is_pythons(native):
    random = np.random.default_rng(0)
    tested = 0
    for case in range(500):
        count, classes = int(random.integers(0, 60)), int(random.integers(1, 12))
        labels = random.integers(0, classes, count)
        if case % 2:
            labels.sort()
        fraction = float(random.choice([0.0, 0.1, 0.2, 0.25, 1 / 3, 0.5, 0.9]))
        seed, client = int(random.integers(0, 2**62)), int(random.integers(0, 2**63 - 1))
        _, test = local_split(
            np.arange(count), labels, client=client, test_fraction=fraction, seed=seed
        )
        found = np.zeros(count, np.uint8)
        native.local_split(labels.ctypes.data, count, fraction, seed, client, found.ctypes.data)
        np.testing.assert_array_equal(np.flatnonzero(found), test)
        tested += len(test)
    assert tested > 1000


def test_the_order_of_visits_is_pythons(native):
    for count, number, epoch in [(1, 1, 0), (60, 3, 0), (60, 3, 4), (257, 2**31, 19)]:
        names = {"seed": 2**40 + 7, "round_number": number, "client": 2**62 + 5}
        found = np.zeros(count, np.int64)
        native.batch_order(count, batch_seed(**names) % 2**64, epoch, found.ctypes.data)
        np.testing.assert_array_equal(found, batch_order(count, epoch=epoch, **names))


def test_evenly_spread_examples_are_pythons(native):
    found = np.zeros(100, np.int64)
    for total in (0, 1, 7, 60, 100):
        for most in (0, 1, 6, 59, 1000):
            size = native.evenly(total, most, found.ctypes.data)
            np.testing.assert_array_equal(found[:size], evenly(total, most))


def test_a_clipped_update_is_pythons_to_the_bit(native):
    random = np.random.default_rng(1)
    within = []
    for case in range(200):
        update = random.normal(size=(3, 71)).astype(np.float32)
        update *= np.float32(10.0 ** random.uniform(-20, 20))
        norm = float(np.linalg.norm(update.astype(np.float64)))
        clip = norm * (1.0 if case % 5 == 0 else 10 ** random.uniform(-3, 1))
        if case % 7 == 0:
            update[:] = 0
        numbers = np.zeros(update.shape, np.uint32)
        found = native.clipped(update.ctypes.data, update.size, clip, numbers.ctypes.data)
        np.testing.assert_array_equal(numbers, with_offset(clipped(update, clip)))
        assert found == is_within(update, clip)
        within.append(found)
    assert 50 < sum(within) < 150
    update[1, 1] = np.nan
    assert native.clipped(update.ctypes.data, update.size, 1.0, numbers.ctypes.data) == -1
