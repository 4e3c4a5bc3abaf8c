"""A gateway with TLS on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.client.gateway.actors import Deployment, make_deployment


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Deployment]:
    """A deployment whose gateway does not run yet."""
    with closing(make_deployment(tmp_path)) as made:
        yield made


@pytest.fixture
def deployment(apart: Deployment) -> Deployment:
    """A deployment whose gateway runs."""
    apart.start()
    return apart
