"""Private rounds of real devices: their noise has a secret, and nobody is taken for absent."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import server.app
import server.round.loop
from client.app import app as client_app
from common.errors import ConfigError
from common.experiment import run_config
from common.privacy.ledger import Ledger
from server.app import run_experiment
from server.export.runtime_cards import ExportReport
from server.round.private import LEDGER, SECRET
from simulations.engines.in_process import InProcessGrid
from simulations.run import read_summary

pytestmark = pytest.mark.wide

Make = Callable[..., Path]
Grid = type[InProcessGrid]

PRIVATE = ("privacy.epsilon=20.0", "train.rounds=3", 'train.lr="auto"', "train.clients-per-round=0")


@pytest.fixture(autouse=True)
def _no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.app, "export", lambda *_: ExportReport("model", Path(), 0, ""))


def run(folder: Path, grid_class: Grid) -> Any:
    values = {"experiment": str(folder / "config.toml"), "overrides": ""}
    run_experiment(grid_class(client_app, 1, values), run_config(values))
    return read_summary(folder)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_devices_are_protected_by_a_secret_that_is_gone_in_the_end(
    tiny: Make, device_grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, seen = tiny(*PRIVATE), list[int]()
    save = server.round.loop.save_checkpoint

    def look(path: Path, **kwargs: Any) -> None:
        seen.append((path.parent / SECRET).stat().st_mode & 0o777)
        save(path, **kwargs)

    monkeypatch.setattr(server.round.loop, "save_checkpoint", look)
    summary = run(folder, device_grid)
    assert seen == [0o600] * 3
    assert not (folder / SECRET).exists()
    told = summary["privacy"]
    assert (told["noise"], told["clients"], told["typical_examples"]) == ("secret", 3, 20)
    assert told["spent"] == pytest.approx(20, abs=1e-5)
    assert "not private" not in told["sentence"]
    again = run(tiny(*PRIVATE, name="again"), device_grid)
    assert again["head_sha256"] != summary["head_sha256"]


def test_a_seed_does_not_protect_devices(tiny: Make, device_grid: Grid) -> None:
    folder = tiny(*PRIVATE, "privacy.noise=seed")
    with pytest.raises(ConfigError, match="these clients are real"):
        run(folder, device_grid)
    assert not (folder / LEDGER).exists()


def test_the_median_of_norms_refuses_nobody(tiny: Make, device_grid: Grid) -> None:
    # Whether a client's update counts must not depend on another's.
    summary = run(tiny(*PRIVATE), device_grid)
    assert summary["rejected_updates"] == 0
    assert summary["valid_updates"] == 9


def away(base: Grid, gone: set[int], calls: int) -> Grid:
    """Some nodes are not there once the server has looked so many times."""

    class Away(base):  # type: ignore[valid-type,misc]
        looked = 0

        def get_node_ids(self) -> Iterable[int]:
            self.looked += 1
            ids = list(super().get_node_ids())
            return [node for node in ids if node not in gone or self.looked <= calls]

    return Away


POISSON = ("privacy.mechanism=poisson", "train.clients-per-round=2", "round.quorum=1.0")


def test_with_coins_a_round_needs_its_quorum_connected_and_not_its_cohort(
    tiny: Make, device_grid: Grid, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("dp_accounting", reason="pip install 'fedhead[privacy]'")
    # All are there: whoever the coins have asked, and be it nobody, each round is released.
    folder = tiny(*PRIVATE, *POISSON, "train.rounds=6", name="all")
    run(folder, device_grid)
    assert [line["accepted"] for line in metrics(folder)] == [True] * 6
    assert [entry.round for entry in Ledger(folder / LEDGER).entries] == list(range(1, 7))
    # One goes: rounds are lost before a coin is tossed, and cost nothing.
    folder = tiny(*PRIVATE, *POISSON, "round.deadline-seconds=0.2", name="few")
    caplog.clear()
    run(folder, away(device_grid, {3}, calls=3))
    accepted = [line["accepted"] for line in metrics(folder)]
    assert accepted == [True, False, False]
    assert [entry.round for entry in Ledger(folder / LEDGER).entries] == [1]
    assert caplog.text.count("fewer clients are connected than round.quorum needs") == 2
    assert "updates are valid" not in caplog.text


def test_a_silent_device_is_missed_and_the_mean_is_still_over_all(
    tiny: Make, device_grid: Grid
) -> None:
    folder = tiny(*PRIVATE, "round.deadline-seconds=1")

    class Silent(device_grid):  # type: ignore[valid-type,misc]
        def push_messages(self, messages: Any) -> Iterable[str]:
            ids = list(super().push_messages(messages := list(messages)))
            self.lost = {
                name
                for name, message in zip(ids, messages, strict=True)
                if message.metadata.message_type == "train" and message.metadata.dst_node_id == 3
            } | getattr(self, "lost", set())
            return ids

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Any]:
            return super().pull_messages([i for i in message_ids if i not in self.lost])

    summary = run(folder, Silent)
    assert [line["valid"] for line in metrics(folder)] == [2, 2, 2]
    assert summary["privacy"]["clients"] == 3
    decided = json.loads((folder / "run.json").read_text())["privacy"]
    assert decided["divisor"] == decided["clients"] == 3
