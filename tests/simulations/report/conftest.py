"""Finished run folders, written by hand: small, and with figures that a person can check."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import load_config, parse_overrides
from server.record.runfolder import CLIENTS, SUMMARY, MetricsLog, RunFolder, write_confusion

TESTS = 1000  # examples of the server's test set

MakeRun = Callable[..., Path]


def _confusion(correct: int, k: int) -> list[list[int]]:
    """TESTS examples; all that is wrong is of class 0 and taken for class 1."""
    rows = [[0] * k for _ in range(k)]
    for i in range(k):
        rows[i][i] = correct // k
    rows[0][0] += correct % k
    rows[0][1] = TESTS - correct
    return rows


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run folder.

    ``correct`` are the right answers of TESTS after each round, ``uplink`` the bytes of a round
    (None: not told), ``clients`` half of the right answers of each client's own ``tests`` test
    examples. The last round's matrix is ``confusion``, or one that has so many right answers.
    ``counts`` are further figures of each round, ``population`` is how many clients there were.
    """

    def make(
        name: str,
        *overrides: str,
        correct: Sequence[int] = (500, 900),
        uplink: int | None = 1000,
        classes: Sequence[str] = ("ant", "bee", "cow"),
        clients: Sequence[int] | None = None,
        personal: Sequence[int] | None = None,
        tests: int = 20,
        confusion: Sequence[Sequence[int]] | None = None,
        counts: Mapping[str, Any] | None = None,
        population: int | None = None,
        **summary: Any,
    ) -> Path:
        path = tmp_path / "cells" / name
        path.mkdir(parents=True)
        config = load_config(None, parse_overrides([f"out={path}", *overrides]))
        RunFolder(path, config).bind("f" * 64, classes, "d" * 64)
        with MetricsLog(path, 0, durable=False) as log:
            for i, n in enumerate(correct, 1):
                log.write(
                    i, {"accuracy": n / TESTS, "uplink-bytes": uplink, "loss": 1.0} | (counts or {})
                )
        rows = confusion or _confusion(correct[-1], len(classes))
        write_confusion(path / "confusion.json", np.array(rows))
        content = {
            "accuracy": correct[-1] / TESTS,
            "centralized_accuracy": 0.92,
            "ridge_accuracy": 0.94,
            "client_accuracy_mean": 0.8,
            "client_accuracy_p10": 0.7,
            "client_accuracy_min": 0.5,
            "rounds": len(correct),
            "rejected_updates": 0,
            "seconds": {"rounds": 2.0, "training": 1.5},
            "fingerprint": "f" * 64,
            "versions": {"python": "3.11.7", "torch": "2.14.1"},
        }
        if population is not None:
            content["clients"] = population
        SUMMARY.write(path / "summary.json", content | summary)
        if clients is not None:
            columns = {
                "client": list(range(len(clients))),
                "train_label_counts": [
                    [5 * (i % len(classes) == c) + 1 for c in range(len(classes))]
                    for i in range(len(clients))
                ],
                "test_examples": [tests] * len(clients),
                "test_correct": [2 * right for right in clients],
                "personal_correct": personal and [2 * right for right in personal],
            }
            CLIENTS.write(path / "clients.json", columns)
        return path

    return make


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """The folder that ``make_run`` fills."""
    return tmp_path / "cells"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    chrome.set_script_timeout(60)
    # Whatever the page asks the network for fails, and is an error in the log.
    chrome.execute_cdp_cmd("Network.enable", {})
    chrome.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    yield chrome
    chrome.quit()
