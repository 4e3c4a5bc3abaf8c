import os

import pytest

from common.machine import cores


def test_omp_num_threads_bounds_what_a_process_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    everything = cores()
    for text, expected in (("1", 1), ("1,4", 1), ("0", everything), ("many", everything)):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert cores() == expected
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert cores() == everything <= (os.cpu_count() or 1)
