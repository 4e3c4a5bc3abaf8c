"""docs/examples/privacy_leak.py reads what docs/privacy.md says that a server can read."""

import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def leak() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "examples/privacy_leak.py"))


def test_statistics_hold_the_features_of_a_lone_image(leak: dict[str, Any]) -> None:
    client = leak["client_features"](num_others=29)
    found = leak["lone_images"](leak["feature_statistics"](client, leak["NUM_CLASSES"]))
    assert found.keys() == {leak["LONE_CLASS"]}
    assert np.array_equal(found[leak["LONE_CLASS"]], client.q[0])


@pytest.mark.parametrize("epochs", [1, 5])
def test_a_delta_of_one_image_tells_its_features_and_label(
    leak: dict[str, Any], epochs: int
) -> None:
    alone = leak["client_features"](num_others=0)
    delta = leak["trained_delta"](alone, epochs)
    label, q = leak["image_behind"](delta, alone.affine)
    assert label == leak["LONE_CLASS"]
    assert np.array_equal(q, alone.q[0])


def test_a_delta_has_at_most_the_rank_of_its_images(leak: dict[str, Any]) -> None:
    ranks = [
        np.linalg.matrix_rank(leak["trained_delta"](leak["client_features"](n - 1))) for n in (1, 3)
    ]
    assert ranks == [1, 3]


def test_the_page_shows_what_the_example_prints(
    leak: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    leak["main"]()
    (shown,) = re.findall(
        r"privacy_leak\.py\n```\n+```text\n(.*?)```", (DOCS / "privacy.md").read_text(), re.S
    )
    assert shown == capsys.readouterr().out
