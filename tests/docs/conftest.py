"""The pages, and a copy of the repository to try their commands in."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PREPARE = """
from pathlib import Path
from common.config import load_config
from common.experiment import experiment_dataset, experiment_features
from server.export.run_model import prepare
config = load_config(Path("simulations/experiments/mnist5k.toml"))
experiment_features(config, prepare(config, experiment_dataset(config)))
"""

# Where fenced.py lies: pytest's way to import tests leaves their folders out of the path.
sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def environment(cache: Path) -> Mapping[str, str]:
    """This environment, with fedhead's commands on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return {
        **os.environ,
        "PATH": path,
        "FEDHEAD_CACHE": str(cache),
        "COLUMNS": "80",
        "OMP_NUM_THREADS": "1",  # pytest's workers have the other cores
    }


@pytest.fixture(scope="session")
def prepared(cache: Path) -> None:
    """Backbone and features of mnist5k are in the cache, made once for all of pytest's workers.

    Nearly all pages take them. Without this, every worker's first page would make its own.
    """
    beside = cache.with_name("prepared")
    with beside.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not beside.stat().st_size:
            subprocess.run([sys.executable, "-c", PREPARE], cwd=ROOT, check=True)
            lock.write("done")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A fresh copy of the repository's files, as a clone has them."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            target = tmp_path / "copy" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    return tmp_path / "copy"


@pytest.fixture
def make_needed() -> Mapping[str, Callable[[Path], None]]:
    """What a page's blocks may need, and who makes it in the copy."""
    return {"photos": make_photos}


def make_photos(folder: Path) -> None:
    """photos/: 40 drawn images in each of three classes, told apart by colour and shape."""
    import numpy as np
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(0)
    colours = {"apple": (200, 40, 40), "leaf": (50, 160, 60), "sky": (90, 140, 220)}
    for name, colour in colours.items():
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(40):
            noise = rng.integers(0, 90, (120, 160, 3), dtype=np.uint8)
            image = Image.fromarray(noise)
            left, top = rng.integers(5, 60, 2).tolist()
            box = (left, top, left + 55 + number, top + 55)
            draw = ImageDraw.Draw(image)
            (draw.ellipse if name != "sky" else draw.rectangle)(box, fill=colour)
            image.save(folder / "photos" / name / f"{number:03}.jpg")
