"""Deployments' folders, and what runs of devices and phones in this process leave out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

import server.app
from server.export.runtime_cards import ExportReport
from server.round import descriptions
from tests.server.round.deployed import NAMES
from tests.server.round.garden import NODES
from tests.server.round.garden import register as register_device
from tests.server.town import GATEWAY_NODE, add_phone, register


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs export nothing: that has tests of its own."""
    monkeypatch.setattr(server.app, "export", lambda *_: ExportReport("model", Path(), 0, ""))


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> None:
    """Each line that a run logs can be looked at."""
    caplog.set_level(logging.INFO, logger="fedhead")


@pytest.fixture
def described_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway is asked for its phones before each round, however soon that is."""
    monkeypatch.setattr(descriptions, "_CHANGED_SECONDS", 0.0)


@pytest.fixture(scope="session")
def folders(
    make_devices: Callable[[Path], list[Path]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Three phones' folders of images, by name; no test changes one."""
    return dict(zip(NAMES, make_devices(tmp_path_factory.mktemp("phones")), strict=True))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A deployment's server folder with a gateway and three phones."""
    folder = tmp_path / "town" / "server"
    register(folder, "gateway", GATEWAY_NODE)
    for name in NAMES:
        add_phone(folder, name)
    return folder


@pytest.fixture(scope="session")
def kept_devices(
    make_devices: Callable[[Path], list[Path]], tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Three devices' folders for all tests that change none: features are computed once."""
    return make_devices(tmp_path_factory.mktemp("phones"))


@pytest.fixture
def garden(tmp_path: Path) -> Path:
    """A deployment's server folder in which three devices are registered."""
    folder = tmp_path / "garden" / "server"
    for name in NODES:
        register_device(folder, name)
    return folder
