"""What the phone libraries ask of device.pte is what the exported file takes and means."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from common.softmax import rows_of_norm, softmax_gradient
from common.statistics import EXACT_ROWS
from server.export.targets.pte_methods import METHODS, Step
from tests.client.phone.device_calls import calls

if TYPE_CHECKING:
    from server.export.trained import TrainedModel

CLIENT = Path(__file__).parents[3] / "client"
SOURCES = {
    "kotlin": CLIENT / "android/library/src/main/kotlin/dev/fedhead/android/Executorch.kt",
    "swift": CLIENT / "ios/Sources/Fedhead/Model.swift",
}
USED = {
    "features", "predict", "train_step", "train_step_preconditioned", "probe", "fingerprint",
    "input_size", "num_features", "most_rows",
}  # fmt: skip


@pytest.mark.parametrize("language", SOURCES)
def test_each_call_has_the_arguments_of_the_exported_files_table(language: str) -> None:
    source = SOURCES[language].read_text()
    found = calls(source)
    assert set(found) == USED
    assert source.count("module.execute(") == len(USED)
    for name, arguments in found.items():
        taken = METHODS[name].partition(" -> ")[0].strip("()")
        assert arguments == re.sub(r" \w+(?=,? |$)", "", taken).replace(" ,", ","), name


@pytest.mark.parametrize("language", SOURCES)
def test_each_result_is_read_as_what_the_table_says(language: str) -> None:
    source = SOURCES[language].read_text()
    results = {name: signature.partition(" -> ")[2] for name, signature in METHODS.items()}
    read = {
        "fingerprint": ("str", r"toStr\(\)|String\.from"),
        "input_size": ("int", r"toInt\(\)|Int\.from"),
        "num_features": ("int", r"toInt\(\)|Int\.from"),
        "most_rows": ("int", r"toInt\(\)|Int\.from"),
        "features": ("uint8[1,d]", r"dataAsUnsignedByteArray|scalars"),
        "predict": ("float[n,K]", r"dataAsFloatArray|scalars"),
    }
    for name, (kind, how) in read.items():
        assert results[name] == kind
        (line,) = [line for line in source.splitlines() if f'execute("{name}"' in line]
        assert re.search(how, line), line
    # The gradient is taken from the second of three.
    assert results["train_step"] == "(float[K,D], float[K,D], float)"
    assert re.search(r"results\[1\]", source)


@pytest.mark.parametrize("unit_norm", [0.0, 2.0])
def test_a_step_with_the_rate_0_gives_the_gradient_of_any_number_of_rows(
    unit_norm: float, trained: TrainedModel
) -> None:
    """As Kotlin and Swift put it together from parts of at most 256 rows."""
    rng = np.random.default_rng(0)
    d, k, n = trained.backbone.spec.num_features, trained.head.num_classes, EXACT_ROWS + 45
    q = torch.from_numpy(rng.integers(0, 256, (n, d), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, k, n))
    matrix = torch.from_numpy(rng.normal(0, 0.01, (k, d + 1)).astype(np.float32))
    zeros, settings = torch.zeros_like(matrix), torch.tensor([0.0, 0.0, 0.0, 0.0, unit_norm])
    step, total = Step(trained.backbone), torch.zeros_like(matrix)
    for first in range(0, n, EXACT_ROWS):
        part = slice(first, first + EXACT_ROWS)
        same, velocity, _ = step(q[part], labels[part], matrix, zeros, matrix, zeros, settings)
        assert torch.equal(same, matrix)
        total += velocity * (len(labels[part]) / n)
    x = torch.cat([torch.from_numpy(trained.backbone.affine(q.numpy())), torch.ones(n, 1)], dim=1)
    x = rows_of_norm(x, unit_norm) if unit_norm else x
    _, expected = softmax_gradient(x, labels, matrix)
    assert expected.abs().max() > 1e-3
    assert (total - expected).abs().max() < 1e-6
