"""What every test shares: a cache of its own, and small experiments."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Before flwr or torch is imported anywhere; see simulations/cli.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for the session, so that no test touches the user's."""
    path = tmp_path_factory.mktemp("cache")
    before = os.environ.get("FEDHEAD_CACHE")
    os.environ["FEDHEAD_CACHE"] = str(path)
    yield path
    if before is None:
        del os.environ["FEDHEAD_CACHE"]
    else:
        os.environ["FEDHEAD_CACHE"] = before


# scikit-learn's 8x8 digits, scaled up to 64 pixels: seconds of work, and learnable.
TINY = """
name = "tiny"
[data]
source = "digits"
calibration-examples = 64
[partition]
scheme = "dirichlet"
alpha = 1.0
num-clients = 8
[backbone]
weights = "imagenet"
input-size = 64
distill-steps = 0
[train]
rounds = 5
clients-per-round = 4
lr = 0.01
[baseline]
epochs = 0
"""


@pytest.fixture
def tiny_toml() -> str:
    """The small experiment as a file's content."""
    pytest.importorskip("sklearn", reason="pip install 'fedhead[demo]'")
    return TINY


@pytest.fixture
def tiny(tiny_toml: str, tmp_path: Path) -> Callable[..., Path]:
    """Makes a run folder of a small experiment, with overrides such as "train.rounds=3"."""
    from common.config import load_config, parse_overrides
    from simulations.run import new_run

    def make(*overrides: str, name: str = "run") -> Path:
        file = tmp_path / "tiny.toml"
        file.write_text(tiny_toml)
        items = [f"out={tmp_path / name}", *overrides]
        return new_run(load_config(file, parse_overrides(items)), overwrite=False)

    return make
