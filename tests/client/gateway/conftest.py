"""A gateway with TLS on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.gateway.actors import Deployment, make_deployment


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    """A deployment whose gateway runs."""
    made = make_deployment(tmp_path)
    made.start()
    yield made
    made.stop()
    for phone in made.phones.values():
        phone.channel.close()
    made.pool.shutdown()
