"""Two worlds that differ in one client: given the same releases, a run leaves the same in both.

A search for known secrets finds what somebody has thought of. Here releases are made the same, and
whatever then still differs would be told past the noise.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

import common.experiment
import server.round.client_figures
import server.round.join
import server.round.private_terms
from common.config import Config
from common.experiment import ClientShare
from common.types import IntArray
from server.round.private import Guard
from server.strategies.private import Digests, Released
from simulations.run import run_in_process

Make = Callable[..., Path]

READERS = (
    common.experiment, server.round.client_figures, server.round.join, server.round.private_terms,
)  # fmt: skip
CLIENT = 3
PRIVATE = ("privacy.epsilon=30.0", "privacy.noise=secret", "train.rounds=4", 'train.lr="auto"')
RUNS = {
    "everyone": ("train.clients-per-round=0",),
    "adaptive": ("train.clients-per-round=0", "privacy.clip=adaptive", "strategy.name=fedadam"),
    "absent": (
        "train.clients-per-round=0", "availability.dropout-rate=0.2",
        "availability.straggler-rate=0.3", "availability.close-fraction=0.8", "round.quorum=0.3",
    ),
    "poisson": ("privacy.mechanism=poisson", "train.clients-per-round=4"),
    "min-separation": ("privacy.mechanism=min-separation", "train.clients-per-round=4"),
    "one-shot": (
        "privacy.mechanism=one-shot", "strategy.name=lda", "train.clients-per-round=0",
        "train.rounds=1",
    ),
}  # fmt: skip
# What a clock has measured, what names the run, and checksums over these.
_OWN = re.compile(
    r'"(time|seconds|train-seconds|rounds_total|training|data|backbone|features|clients|baselines|'
    r'rounds|evaluation|export)": ?([\d.]+|"[^"]*Z")|"(run|run-id|model_path)": "[^"]*"|'
    r'(, )?"checksum": "\w+"|# checksum: \w+'
)


@dataclass
class Worlds:
    """Runs in two worlds, with releases that are the same in both.

    Attributes:
        sums: the exact sums of all releases.
    """

    quick: Make
    monkeypatch: pytest.MonkeyPatch
    sums: list[IntArray] = field(default_factory=list)

    def both(self, *options: str) -> list[dict[str, str]]:
        return [self._left(name, *options) for name in ("one", "other")]

    def _left(self, name: str, *options: str) -> dict[str, str]:
        """By file, what a run leaves."""
        path, shares = self.quick(*options, name=name), common.experiment.client_shares

        def fewer(config: Config) -> tuple[ClientShare, ...]:
            return _fewer(shares(config)) if name == "other" else shares(config)

        with self.monkeypatch.context() as patch:
            for reader in READERS:
                patch.setattr(reader, "client_shares", fewer)
            patch.setattr(Guard, "release", self._release)
            patch.setattr(Guard, "allows", lambda *_: True)
            run_in_process(path)
        files = (file for file in path.rglob("*") if _tells(file))
        return {str(file.relative_to(path)): _told(file) for file in files}

    @property
    def _release(self) -> Callable[[Guard, int, IntArray, float, Digests], Released]:
        def release(
            guard: Guard, number: int, total: IntArray, clip: float, _earlier: Digests
        ) -> Released:
            self.sums.append(total)
            name = hashlib.sha256(str(number).encode()).digest()
            guard._ledger.charge(guard._entry(number, name, "ab" * 8, clip))
            noisy = np.random.default_rng(number).integers(-(2**20), 2**20, total.size)
            digest = np.frombuffer(name, np.uint8)
            return Released(noisy, digest, number >= guard.decided.rounds)

        return release


@lru_cache
def _fewer(known: tuple[ClientShare, ...]) -> tuple[ClientShare, ...]:
    """The same, but for a client that has a single image."""
    cut = dataclasses.replace(known[CLIENT], train=known[CLIENT].train[:1].copy())
    return (*known[:CLIENT], cut, *known[CLIENT + 1 :])


@pytest.fixture
def worlds(quick: Make, monkeypatch: pytest.MonkeyPatch) -> Worlds:
    return Worlds(quick, monkeypatch)


def _tells(file: Path) -> bool:
    """Whether a file tells more than times and what other files tell."""
    made_of_others = file.name in ("timing.csv", "curves.csv", "SHA256SUMS")
    return file.is_file() and not (made_of_others or file.parent.name == "tensorboard")


def _told(file: Path) -> str:
    """What a file tells, without what its run measured."""
    data = file.read_bytes()
    if file.suffix in (".json", ".jsonl", ".toml", ".csv"):
        return _OWN.sub("", data.decode())
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in ("everyone", "poisson") else pytest.mark.wide)
    for name in RUNS
])  # fmt: skip
def test_given_its_releases_a_run_is_the_same_whatever_a_client_has(
    worlds: Worlds, name: str
) -> None:
    if name == "poisson":
        pytest.importorskip("dp_accounting", reason="pip install 'fedhead[privacy]'")
    one, other = worlds.both(*PRIVATE, *RUNS[name])
    half = len(worlds.sums) // 2
    pairs = zip(worlds.sums[:half], worlds.sums[half:], strict=True)
    assert any((a != b).any() for a, b in pairs), "the worlds are the same"
    assert {"summary.json", "metrics.jsonl", "events.jsonl", "head.safetensors"} <= one.keys()
    assert one.keys() == other.keys()
    assert {file for file in one if one[file] != other[file]} == set()


def test_without_privacy_the_same_comparison_finds_what_is_told_of_a_client(
    worlds: Worlds,
) -> None:
    one, other = worlds.both("train.rounds=2", "train.lr=1e-30", "train.clients-per-round=0")
    assert one["confusion.json"] == other["confusion.json"]  # such steps are too small for a head
    differ = {file for file in one if one[file] != other[file]}
    assert {"metrics.jsonl", "events.jsonl", "summary.json", "clients.json"} <= differ
