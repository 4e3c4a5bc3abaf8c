"""A function in a process of its own: its result, warnings and errors come back."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from common.apart import in_fresh_process, is_reused, reused
from common.errors import BackboneError
from common.toml_model import read_toml


def test_it_runs_elsewhere() -> None:
    assert in_fresh_process(os.getpid) != os.getpid()


def test_an_error_of_fedheads_comes_back_as_one_line() -> None:
    with pytest.raises(BackboneError, match=r"nowhere.toml.*no such file"):
        in_fresh_process(read_toml, Path("nowhere.toml"))


def test_a_process_that_dies_is_an_error() -> None:
    with pytest.raises(BackboneError, match="_exit: its process died"):
        in_fresh_process(os._exit, 3)


def test_warnings_come_back(caplog: pytest.LogCaptureFixture) -> None:
    in_fresh_process(logging.getLogger("fedhead").warning, "100%% sure")
    assert [record.getMessage() for record in caplog.records] == ["100%% sure"]


def test_only_inside_is_the_process_one_that_others_have_used() -> None:
    with reused():
        assert is_reused()
    assert not is_reused()
