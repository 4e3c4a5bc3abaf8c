"""The Kotlin source against the exported file: what cannot be compiled here is at least true.

Each ``runMethod`` call is read from Lite.kt, its arguments are made as they stand there, and the
file's lite interpreter runs it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageOps
from torch.jit.mobile import _load_for_lite_interpreter

from common.backbone._deprecations import accepted_deprecations
from common.backbone.engine import quantized_engine
from common.images import decode_array
from server.export.card import Card, card_path

pytestmark = pytest.mark.wide

ANDROID = Path(__file__).parent.parent.parent / "client/android"
LIBRARY = ANDROID / "library/src/main/kotlin/dev/fedhead/android"
SOURCE = (LIBRARY / "Lite.kt").read_text()
# One call: the function's parameters, then the method, its arguments and how the result is read.
CALL = re.compile(
    r"fun \w+\((?P<parameters>[^)]*)\)[^=\n]*[={]\s*"
    r"module\.runMethod\(\"(?P<method>\w+)\"(?P<arguments>[^\n]*?)\)(?P<result>(\.\w+(\(\))?)*)\n"
)
CALLS = [match.groupdict() for match in CALL.finditer(SOURCE)]
SIZES = {"n": 4, "sizeOfImages": 32, "d": 1280, "numClasses": 10}
KOTLIN = {"Double": 0.05, "Long": 2}
RESULTS = {
    ".toTensor().dataAsUnsignedByteArray": torch.uint8,
    ".toTensor().dataAsFloatArray": torch.float32,
    ".toDouble()": float,
    ".toStr()": str,
    ".toTuple()": tuple,
    "": type(None),
}


def tensor(kind: str, shape: str) -> torch.Tensor:
    sizes = [SIZES[name] if name in SIZES else int(name) for name in re.split(r",\s*", shape)]
    dtype = {"uint8": torch.uint8, "int64": torch.int64, "float32": torch.float32}[kind]
    return torch.ones(sizes, dtype=dtype)


def arguments(call: dict[str, str], fingerprint: str) -> list[Any]:
    types = dict(re.findall(r"(\w+): (\w+)", call["parameters"]))
    values: list[Any] = []
    for made, name, shape in re.findall(
        r"(uint8|int64|float32|IValue\.from)\((\w+)(?:, ([^)]*))?\)", call["arguments"]
    ):
        if made != "IValue.from":
            values.append(tensor(made, shape))
        else:
            values.append(fingerprint if types[name] == "String" else KOTLIN[types[name]])
    return values


def test_every_call_in_the_source_is_read():
    assert len(CALLS) == SOURCE.count("runMethod(") == 8


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call["method"])
def test_a_call_in_kotlin_is_one_that_the_exported_file_takes(device_files, call):
    path = device_files["lite"].path
    card = Card.model_validate_json(card_path(path).read_text())
    assert call["method"] in card.methods
    with quantized_engine("qnnpack"), accepted_deprecations():
        model = _load_for_lite_interpreter(str(path))
        result = model.run_method(call["method"], *arguments(call, card.fingerprint))
    expected = RESULTS[call["result"]]
    found = result.dtype if isinstance(result, torch.Tensor) else type(result)
    assert found == expected


def kotlin_windows(length: int, start: float, side: int, size: int) -> npt.NDArray[np.float64]:
    """Weights (size, length) of the scaling, by the formulas that stand in the source."""
    file = ANDROID / "core/src/main/kotlin/dev/fedhead/Scaling.kt"
    source = file.read_text().partition("fun windows")[2]
    formulas = dict(re.findall(r"val (\w+) = (.*)", source))
    # The terms of one window: DoubleArray(count) { k -> weight }.
    count, weight = re.fullmatch(r"DoubleArray\((.*?)\) \{ k -> (.*) \}", formulas["raw"]).groups()
    names = {
        "length": length,
        "start": start,
        "side": side,
        "size": size,
        "maxOf": max,
        "minOf": min,
    }
    matrix = np.zeros((size, length))
    for i in range(size):
        names["i"] = i
        for name in ("step", "reach", "center", "first", "end"):
            formula = formulas[name].replace(".toDouble()", "")
            names[name] = eval(re.sub(r"\((.*)\)\.toInt\(\)", r"(int(\1))", formula), names)
        raw = [eval(weight, names | {"k": k, "abs": abs}) for k in range(eval(count, names))]
        matrix[i, names["first"] : names["end"]] = np.array(raw) / sum(raw)
    return matrix


@pytest.mark.parametrize(("width", "height"), [(160, 120), (51, 33), (7, 5), (33, 200)])
def test_the_scaling_in_kotlin_is_that_of_training(width, height):
    image = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    size, side = 32, min(width, height)
    columns = kotlin_windows(width, (width - side) / 2, side, size)
    rows = kotlin_windows(height, (height - side) / 2, side, size)
    narrow = np.rint(image @ columns.T)
    got = np.rint(rows @ narrow)
    assert np.abs(got - decode_array(image, size)[0]).max() <= 1  # Pillow's weights are integers


ORIENTATIONS = {
    "FLIP_HORIZONTAL": 2,
    "ROTATE_180": 3,
    "FLIP_VERTICAL": 4,
    "TRANSPOSE": 5,
    "ROTATE_90": 6,
    "TRANSVERSE": 7,
    "ROTATE_270": 8,
}


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_the_turns_in_kotlin_bring_an_image_upright(name):
    source = (LIBRARY / "Pixels.kt").read_text()
    (body,) = re.findall(rf"ORIENTATION_{name} -> (.*)", source)
    matrix = np.eye(2)
    for step, values in re.findall(r"(setRotate|setScale|postScale)\(([^)]*)\)", body):
        x = [float(value.rstrip("f")) for value in values.split(",")]
        turn = np.deg2rad(x[0])  # clockwise, for rows go down
        made = np.diag(x) if len(x) == 2 else rotation(turn)
        matrix = made @ matrix if step.startswith("post") else made
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3)
    rows, columns = np.indices(stored.shape).reshape(2, -1)
    x, y = np.rint(matrix @ [columns, rows]).astype(int)
    x, y = x - x.min(), y - y.min()
    upright = np.zeros((y.max() + 1, x.max() + 1), np.uint8)
    upright[y, x] = stored.ravel()
    image = Image.fromarray(stored)
    image.getexif()[0x0112] = ORIENTATIONS[name]
    assert np.array_equal(upright, np.asarray(ImageOps.exif_transpose(image)))


def rotation(turn: float) -> npt.NDArray[np.float64]:
    return np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])


def test_the_sample_app_copies_all_of_a_phones_folder_and_backs_nothing_up():
    """All that deploy --phone writes; without trusted/ nothing would have to be signed."""
    main = ANDROID / "sample/src/main"
    source = (main / "kotlin/dev/fedhead/sample/TakePart.kt").read_text()
    copied = re.search(r"listOf\(([^)]*)\)\.forEach \{ copy\(context, it, folder\)", source)[1]
    assert re.findall(r'"([\w.]+)"', copied) == ["phone.toml", "phone.token", "ca.crt"]
    assert 'assets.list("fedhead/trusted")' in source
    assert 'copy(context, "trusted/$it", folder)' in source
    assert 'android:allowBackup="false"' in (main / "AndroidManifest.xml").read_text()


def test_the_runtime_that_gradle_names_reads_the_files_bytecode(device_files):
    card = Card.model_validate_json(card_path(device_files["lite"].path).read_text())
    gradle = (ANDROID / "library/build.gradle.kts").read_text()
    assert "org.pytorch:pytorch_android_lite:2.1.0" in gradle
    assert card.bytecode_version is not None
    assert card.bytecode_version <= 8  # what 2.1.0 reads at most
