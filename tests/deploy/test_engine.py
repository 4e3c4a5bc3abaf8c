"""A deployment gives the head that one process gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from numpy.linalg import norm
from safetensors.numpy import load_file

if TYPE_CHECKING:
    from tests.deploy.conftest import Deployment


@pytest.mark.slow
def test_five_devices_over_tls_give_the_head_of_the_in_process_engine(
    deployment: Callable[..., Deployment],
    head_in_process: Callable[..., dict],
    tiny: Callable[..., Path],
) -> None:
    names = ["a", "b", "c", "d", "e"]
    deployed = deployment(*names)
    deployed.start_server()
    for number, name in enumerate(names):
        deployed.give_pictures(name, number)
        deployed.start_device(name)
    options = ("train.rounds=5", f"train.clients-per-round={len(names)}")
    run = tiny(*options, name="deployed")
    summary = deployed.run(run)
    assert (summary["clients"], summary["valid_updates"]) == (5, 25)
    assert (summary["rejected_updates"], summary["failed_updates"]) == (0, 0)
    head = load_file(run / "head.safetensors")
    for key, expected in head_in_process(deployed, *options).items():
        assert norm(head[key] - expected) <= 1e-5 * norm(expected), key
