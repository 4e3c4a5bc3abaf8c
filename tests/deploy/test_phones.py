"""Phones in C++ and Python, and devices, give the head of as many devices in one process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import executorch
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from common.images import decode_array
from tests.client.native_phones import built

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

Make = Callable[..., Any]

SIZE = 64  # the small experiment's input
PYTHON, LITE, EXECUTORCH = ("ada", "bea"), ("cleo", "dora"), ("eva", "fay")
DEVICES = ("gus", "hal")
OPTIONS = (
    "train.rounds=5", "train.clients-per-round=8", "round.deadline-seconds=120",
    "train.lr=0.001",  # with a rate at which heads run away, rounding does, too
)  # fmt: skip
STRATEGIES = {
    "fedavg": (),
    "fedprox with momentum": ("strategy.name=fedprox", "train.momentum=0.5"),
    "scaffold": ("strategy.name=scaffold",),
    "fed3r": ("strategy.name=fed3r",),
    "projection": ("backbone.projection=32",),
    # One bit a number: one that is nearly zero may change its sign by a delta's last bit. That
    # happens to one in a million, and these are 330 an update, which rotation fills up to 640.
    "projection and drive": ("backbone.projection=32", "codec.up=drive"),
}


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The C++ phone, by the runtime that is in it."""
    folder = tmp_path_factory.mktemp("phones")
    torch_folder, wheel = Path(torch.__file__).parent, next(iter(executorch.__path__))
    return {
        "lite": built(
            folder / "lite", "-DFEDHEAD_EXECUTORCH=OFF", f"-DCMAKE_PREFIX_PATH={torch_folder}"
        ),
        "executorch": built(
            folder / "pte", "-DFEDHEAD_LITE=OFF", "-DFEDHEAD_EXECUTORCH=ON",
            f"-DEXECUTORCH_ROOT={wheel}",
        ),
    }  # fmt: skip


def give_pixels(made: Any, name: str, number: int, count: int = 60) -> None:
    """A part of the digits that is the same in PNG, for Python, and as planes, for C++."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i in range(number * count, (number + 1) * count):
        small = (digits.images[i] * (255 / 16)).astype(np.uint8)
        planes = decode_array(small, SIZE)
        for kind in ("images", "planes"):
            (made.device(name) / kind / str(digits.target[i])).mkdir(parents=True, exist_ok=True)
        folder = made.device(name)
        image = Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))
        image.save(folder / "images" / str(digits.target[i]) / f"{i:05}.png")
        planes.tofile(folder / "planes" / str(digits.target[i]) / f"{i:05}.rgb")


@pytest.fixture
def town(deployment: Make, programs: dict[str, Path]) -> Any:
    """A server, two devices, and a gateway with six phones; all run."""
    made = deployment(*DEVICES, phones=(*PYTHON, *LITE, *EXECUTORCH))
    for number, name in enumerate((*DEVICES, *PYTHON, *LITE, *EXECUTORCH)):
        give_pixels(made, name, number)
    made.start_server()
    made.start_gateway()
    for name in DEVICES:
        made.start_device(name)
    for name in PYTHON:
        made.start_phone(name)
    for kind, names in (("lite", LITE), ("executorch", EXECUTORCH)):
        for name in names:
            made.set(name, data='"folder:planes"')
            made.start(name, [str(programs[kind]), str(made.device(name))])
    return made


def test_six_phones_and_two_devices_give_the_head_of_eight_devices_in_one_process(
    town: Any, head_in_process: Make, tiny: Make
) -> None:
    for title, settings in STRATEGIES.items():
        options = (*OPTIONS, *settings)
        run = tiny(*options, name=title)
        town.run(run)
        rounds = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [(line["valid"], line["dropouts"]) for line in rounds] == [(8, {})] * len(rounds)
        wanted = head_in_process(town, *options)
        shutil.rmtree(run.parent / "reference")
        for key, array in load_file(run / "head.safetensors").items():
            np.testing.assert_allclose(array, wanted[key], rtol=0, atol=1e-6, err_msg=title)
        assert np.abs(wanted["weight"]).max() > 1e-3

    # Without a projection an update has 20,480, so that on some processors a sign may differ: that
    # is 0.4 % of the update. A wrong seed, or a sum with other weights, would be far more.
    options = (*OPTIONS, "codec.up=drive")
    run = tiny(*options, name="drive")
    town.run(run)
    wanted = head_in_process(town, *options)
    for key, array in load_file(run / "head.safetensors").items():
        assert np.linalg.norm(array - wanted[key]) < 0.01 * np.linalg.norm(wanted[key])
    for name in LITE + EXECUTORCH:
        assert "accepted" in town.said(name)
