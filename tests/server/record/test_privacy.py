"""What a run's folder says of its privacy, also where somebody took something out of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from common.config import load_config, parse_overrides
from common.errors import DamagedError, RunError
from common.privacy.gaussian import gaussian_epsilon
from common.privacy.ledger import Entry, Ledger
from common.privacy.noise import NoiseKey, seed_secret
from common.privacy.words import NOT_PRIVATE
from server.record.privacy import Privacy, privacy_sentence, read_privacy
from server.record.runfolder import MetricsLog, RunFolder

MakeRun = Callable[..., Path]

OWN = NoiseKey(bytes(32)).name


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A folder with a ledger of ``rounds``, of noise 4, and ``finished`` rounds."""

    def make(
        *overrides: str, rounds: tuple[int, ...] = (1, 2, 3), finished: int = 3, secret: str = OWN
    ) -> Path:
        path = tmp_path / "run"
        config = load_config(None, parse_overrides([f"out={path}", *overrides]))
        path.mkdir()
        RunFolder(path, config).bind("f" * 64, ("ant", "bee"), "d" * 64)
        with MetricsLog(path, 0, durable=False) as log:
            for number in range(1, finished + 1):
                log.write(number, {"accuracy": 0.5, "accepted": True})
        for i, number in enumerate(rounds):
            digest = f"{i:064x}"
            entry = Entry(number, digest, secret, "everyone", 4.0, 500, 0.1, config.privacy.delta)
            Ledger(path / "privacy-ledger.jsonl").charge(entry)
        return path

    return make


def read(path: Path) -> Privacy:
    found = read_privacy(path)
    assert found is not None
    return found[0]


def test_what_was_spent_is_that_of_all_releases(make_run: MakeRun) -> None:
    privacy = read(make_run("privacy.epsilon=8", "privacy.delta=1e-6"))
    # Three releases of noise 4 are one of noise 4 / sqrt(3).
    assert privacy.spent == pytest.approx(gaussian_epsilon(4 / 3**0.5, 1e-6))
    assert (privacy.epsilon, privacy.delta, privacy.clients) == (8.0, 1e-6, 500)
    assert [release.round for release in privacy.releases] == [1, 2, 3]
    assert not any(release.again for release in privacy.releases)
    assert not privacy.simulated
    assert "not private" not in privacy.sentence


def test_a_round_that_was_done_again_counts_twice(make_run: MakeRun) -> None:
    privacy = read(make_run("privacy.epsilon=8", rounds=(1, 2, 2, 3)))
    assert [release.again for release in privacy.releases] == [False, False, True, False]
    assert privacy.spent == pytest.approx(gaussian_epsilon(4 / 4**0.5, 1e-5))


def test_noise_of_the_seed_is_found_whatever_the_experiment_says(make_run: MakeRun) -> None:
    name = NoiseKey(seed_secret(5)).name
    privacy = read(make_run("privacy.epsilon=8", "seed=5", "privacy.noise=secret", secret=name))
    assert privacy.simulated
    assert "Simulated, not private" in privacy.sentence


@pytest.mark.parametrize(
    ("noise", "simulated"), [("auto", True), ("seed", True), ("secret", False)]
)
def test_before_the_first_release_nothing_is_spent(
    make_run: MakeRun, noise: str, simulated: bool
) -> None:
    path = make_run("privacy.epsilon=8", f"privacy.noise={noise}", rounds=(), finished=0)
    privacy = read(path)
    assert (privacy.spent, privacy.releases, privacy.clients) == (0.0, (), None)
    assert privacy.simulated == simulated


def test_a_run_without_a_budget_guarantees_nothing(make_run: MakeRun) -> None:
    path = make_run(rounds=())
    assert read_privacy(path) is None
    assert privacy_sentence(path) == NOT_PRIVATE


def test_a_ledger_that_is_gone_is_no_smaller_sum(make_run: MakeRun) -> None:
    path = make_run("privacy.epsilon=8")
    (path / "privacy-ledger.jsonl").unlink()
    with pytest.raises(RunError, match=r"round 1 has made a head, but .*ledger.jsonl is not there"):
        read_privacy(path)


def test_nor_is_one_whose_last_lines_are_gone(make_run: MakeRun) -> None:
    path = make_run("privacy.epsilon=8")
    ledger = path / "privacy-ledger.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(lines[:-1]))
    with pytest.raises(RunError, match=r"round 3 has made a head, but .*ledger.jsonl lacks it"):
        read_privacy(path)


def test_half_a_last_line_is_a_kill_before_its_release(make_run: MakeRun) -> None:
    path = make_run("privacy.epsilon=8", finished=2)
    ledger = path / "privacy-ledger.jsonl"
    os.truncate(ledger, ledger.stat().st_size - 20)
    assert [release.round for release in read(path).releases] == [1, 2]


def test_less_noise_than_was_charged_is_seen(make_run: MakeRun) -> None:
    path = make_run("privacy.epsilon=8")
    ledger = path / "privacy-ledger.jsonl"
    first, *rest = ledger.read_text().splitlines(keepends=True)
    forged = json.dumps(json.loads(first) | {"multiplier": 40.0}) + "\n"
    ledger.write_text("".join([forged, *rest]))
    with pytest.raises(DamagedError, match="privacy-ledger"):
        read_privacy(path)


def test_of_a_round_that_was_done_again_no_release_may_be_gone(make_run: MakeRun) -> None:
    path = make_run("privacy.epsilon=8", rounds=(1, 2, 2, 3), finished=0)
    ledger = path / "privacy-ledger.jsonl"
    with MetricsLog(path, 0, durable=False) as log:
        for number, releases in ((1, 1), (2, 3), (3, 4)):
            told = gaussian_epsilon(4 / releases**0.5, 1e-5)
            log.write(number, {"accepted": True, "epsilon-spent": told})
    assert len(read(path).releases) == 4
    ledger.unlink()
    for i, number in enumerate((1, 2, 3)):
        entry = Entry(number, f"{i:064x}", OWN, "everyone", 4.0, 500, 0.1, 1e-5)
        Ledger(ledger).charge(entry)
    with pytest.raises(RunError, match=r"epsilon 2 was spent, but the releases in .* cost 1.7"):
        read_privacy(path)


def test_a_damaged_line_of_metrics_says_nothing_of_the_ledger(make_run: MakeRun) -> None:
    path = make_run("privacy.epsilon=8")
    metrics = path / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([*lines[:-1], lines[-1].replace("0.5", "0.6")]))
    assert len(read(path).releases) == 3


def test_a_run_that_goes_on_from_another_says_that_this_is_not_counted(make_run: MakeRun) -> None:
    path = make_run("privacy.epsilon=8", "strategy.init-from=/elsewhere/run")
    assert "What its first head, another run's, had cost is not counted" in privacy_sentence(path)
    assert "/elsewhere" not in privacy_sentence(path)
