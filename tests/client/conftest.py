"""The C++ phone, its backbone's files, and a gateway that serves them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from server.export.trained import TrainedModel
    from tests.client.native_models import Shop
    from tests.client.native_phones import Place


@pytest.fixture(scope="session")
def phone_program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds fedhead-phone with one runtime in it, once."""
    from tests.client.native_phones import phone_with

    folder = tmp_path_factory.mktemp("native-phone")
    return lru_cache(lambda runtime: phone_with(runtime, folder))


@pytest.fixture(scope="session")
def backbone_files(
    trained: TrainedModel, device_files: Any, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, bytes]:
    """A backbone's files by format."""
    from server.export.exporters import export

    path = tmp_path_factory.mktemp("pte") / "device.pte"
    export(trained, "device-pte", path)
    return {"executorch": path.read_bytes(), "lite": device_files["lite"].path.read_bytes()}


@pytest.fixture
def place(
    trained: TrainedModel, backbone_files: Mapping[str, bytes], tmp_path: Path
) -> Iterator[Place]:
    """A deployment whose gateway runs."""
    from tests.client.native_phones import Place

    with closing(Place(tmp_path, trained, backbone_files)) as made:
        made.start()
        yield made


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """A deployment whose gateway runs, and has finished models."""
    from tests.client.native_models import Shop

    with closing(Shop(tmp_path)) as made:
        made.start()
        yield made
