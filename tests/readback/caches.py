"""Files of the caches: what is damaged is made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.backbone.cache import _from_key
from common.backbone.frozen import load_by_fingerprint, store
from common.experiment import _cached_parts
from common.features import extract
from common.files import write_atomic
from common.privacy.accounting import _cached_figure
from server.export.trained import TrainedModel
from tests.readback.rows import Make, Row, into, is_none

ROWS: dict[str, Make] = {}
row = into(ROWS)


@row("partition in the cache")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    request.getfixturevalue("monkeypatch").setenv("FEDHEAD_CACHE", str(tmp))
    parts = [np.arange(5), np.arange(5, 9)]
    _cached_parts("0" * 64, lambda: parts)
    return Row([*(tmp / "partitions").iterdir()], lambda: _cached_parts("0" * 64, lambda: parts))


@row("features in the cache")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    trained: TrainedModel = request.getfixturevalue("trained")

    def read() -> Any:
        images = trained.images
        return extract(trained.backbone, lambda i: images[i], 2, content_key="k", cache=tmp)

    read()
    (folder,) = (tmp / "features").iterdir()
    return Row(sorted(folder.iterdir()), read)


@row("backbone in the cache")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    backbone = request.getfixturevalue("trained").backbone

    def read() -> Any:
        found = load_by_fingerprint(backbone.fingerprint, tmp)
        return found and (found.fingerprint, found.spec, found.affine)

    return Row([*store(backbone, tmp).iterdir()], read, is_none)


@row("key of a backbone in the cache")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    backbone = request.getfixturevalue("trained").backbone
    store(backbone, tmp)
    file = tmp / "backbones" / "keys" / "0"
    write_atomic(file, backbone.fingerprint.encode())

    def read() -> Any:
        found = _from_key(file, tmp)
        return found and found.fingerprint

    return Row([file], read, is_none)


@row("figure of privacy in the cache")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    request.getfixturevalue("monkeypatch").setenv("FEDHEAD_CACHE", str(tmp))
    question = {"of": "epsilon", "z": 2.0}
    _cached_figure(question, lambda: 5.5)
    # What is damaged is computed again.
    return Row([*(tmp / "privacy").iterdir()], lambda: _cached_figure(question, lambda: 5.5))
