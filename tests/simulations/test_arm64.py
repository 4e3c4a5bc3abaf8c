"""The device files on a phone's processor, emulated."""

from __future__ import annotations

import pytest

from common.errors import RunError
from simulations.bench.speed.arm64 import compare_on_arm64, default_folder, emulated_python


@pytest.mark.slow
@pytest.mark.timeout(2400)  # the first time fetches 120 MB; emulated, importing torch takes 20 s
@pytest.mark.parametrize("target", ["device", "lite"])
def test_features_have_the_same_bits_and_fifty_steps_the_same_head(device_files, trained, target):
    try:
        python = emulated_python(default_folder())
    except RunError as exc:
        pytest.skip(str(exc))
    report = compare_on_arm64(device_files[target].path, trained, python)
    assert report.max_feature_difference == 0
    assert report.max_delta_difference <= 1e-6
    assert report.max_delta > 1e-3  # a thousand times what is tolerated


def test_where_it_cannot_be_had_it_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match=r"cannot be emulated here: apt-get is missing"):
        emulated_python(tmp_path / "arm64")
    assert not (tmp_path / "arm64").exists()
