"""Whole runs of phones behind a gateway: who takes part, and what is made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.errors import ConfigError, FedheadError
from common.messages import EvaluateRequest, TrainReply, TrainRequest
from server.record.runfolder import HEAD
from tests.server.round.deployed import HALL, IDS, OPTIONS, Make, events, metrics, run
from tests.server.town import GATEWAY_NODE, Town, register

pytestmark = pytest.mark.usefixtures("no_export", "logged", "described_again_at_once")

# Rows of single phones, with a memory; sums of integers; sums as the strategy asks for.
CASES = {
    "fedavg": (),
    "scaffold": ("strategy.name=scaffold",),
    "fed3r": ("strategy.name=fed3r",),
    "median": ("strategy.name=median",),
    "fedprox": ("strategy.name=fedprox", "train.momentum=0.9", "round.max-update-norm=1e6"),
    "int8": ('codec.up="int8"', 'codec.down="int8"'),
}


@pytest.mark.parametrize("case", CASES)
def test_phones_behind_a_gateway_give_the_head_that_devices_give(
    tiny: Make, folders: dict[str, Path], place: Path, tmp_path: Path, case: str
) -> None:
    options = (*OPTIONS, *CASES[case])
    summary = run(tiny(*options, name="phones"), Town(folders), place)
    # Devices whose keys happen to have the phones' ids, so that all draws are the same.
    garden = tmp_path / "garden" / "server"
    for name, client in IDS.items():
        register(garden, name, client)
    grid = Town({}, {IDS[name]: folder for name, folder in folders.items()})
    grid._contexts.pop(GATEWAY_NODE)
    same = run(tiny(*options, name="devices"), grid, garden)
    assert summary["valid_updates"] == same["valid_updates"] > 0
    if case == "int8":  # a gateway is sent whole heads, a device changes of them
        assert summary["uplink_bytes"] == pytest.approx(same["uplink_bytes"], rel=0.1)
        return
    heads = [HEAD.read(tmp_path / name / "head.safetensors") for name in ("phones", "devices")]
    for name in ("weight", "bias"):  # float32 sums of three and of one
        np.testing.assert_allclose(heads[0][name], heads[1][name], rtol=0, atol=1e-6)
    assert np.abs(heads[0]["weight"]).max() > 0.01


def test_a_private_run_takes_phones_and_tells_nothing_of_them(
    tiny: Make, folders: dict[str, Path], place: Path
) -> None:
    folder = tiny("privacy.epsilon=20.0", 'train.lr="auto"', *OPTIONS)
    grid = Town(folders)
    grid.rejecting = {IDS["ben"]: "declined: on its owner's lap"}
    summary = run(folder, grid, place)
    assert summary["valid_updates"] == 4
    assert {request.plan.private for request in grid.asked(TrainRequest)} == {True}
    assert grid.asked(EvaluateRequest) == []
    assert {request.counts for request in grid.asked(TrainRequest)} == {()}
    first, second = metrics(folder)
    assert not {"dropouts", "phase-seconds"} & first.keys()
    assert [line["failed"] for line in (first, second)] == [1, 1]
    assert [line["rejected"] for line in (first, second)] == [0, 0]
    (told, _) = events(folder, "dropouts")
    assert told["message"].endswith("1 phone drops out: the run is private, so why is not told")
    assert "lap" not in (folder / "events.jsonl").read_text()


def test_listed_phones_alone_take_part(tiny: Make, folders: dict[str, Path], place: Path) -> None:
    grid = Town(folders)
    folder = tiny(*OPTIONS, 'train.clients=["anna", "carla"]')
    run(folder, grid, place)
    assert {i for request in grid.asked(TrainRequest) for i in request.clients} == {
        IDS["anna"], IDS["carla"],
    }  # fmt: skip
    with pytest.raises(ConfigError, match="lists 'zoe', expected .*: anna, ben, carla"):
        run(tiny(*OPTIONS, 'train.clients=["zoe"]', name="other"), Town(folders), place)


def test_phones_that_come_and_go_are_seen_at_the_next_round_without_a_line_for_each(
    tiny: Make, folders: dict[str, Path], place: Path
) -> None:
    grid = Town(folders)

    def leave(request: TrainRequest, reply: TrainReply) -> TrainReply:
        grid.present = {IDS["ben"]} if request.round_number == 1 else set(IDS.values())
        return reply

    grid.change = leave
    folder = tiny("train.rounds=3", "train.clients-per-round=0", "round.quorum=0.3")
    run(folder, grid, place)
    assert [set(request.clients) for request in grid.asked(TrainRequest)] == [
        set(IDS.values()), {IDS["ben"]}, set(IDS.values()),
    ]  # fmt: skip
    assert [event["message"] for event in events(folder, "phones")] == [
        "gateway: 3 phones are there", "gateway: 1 phone is there", "gateway: 3 phones are there",
    ]  # fmt: skip
    assert events(folder, "gone") == events(folder, "joined") == []


def test_personal_heads_are_the_devices_alone(
    tiny: Make, folders: dict[str, Path], place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    register(place, "hall", HALL)
    grid = Town(folders, {HALL: folders["anna"]})
    folder = tiny("train.rounds=1", "train.clients-per-round=0", "strategy.name=ditto")
    summary = run(folder, grid, place)
    (evaluate,) = grid.asked(EvaluateRequest)
    assert (evaluate.personal, evaluate.alone) == (0.0, False)
    assert "3 phones make no heads of their own: they only evaluate" in caplog.messages
    assert summary["client_tests"]["clients"] == 4
    assert summary["personal_accuracy_mean"] is not None


def test_a_stock_strategy_refuses_phones_in_a_clear_sentence(
    tiny: Make, folders: dict[str, Path], place: Path
) -> None:
    stock = 'strategy.name="flwr.serverapp.strategy:FedAvg"'
    with pytest.raises(FedheadError, match="all phones are behind the gateway's"):
        run(tiny(*OPTIONS, stock), Town(folders), place)
    register(place, "hall", HALL)
    grid = Town(folders, {HALL: folders["anna"]})
    summary = run(tiny(*OPTIONS, stock, 'train.clients=["hall"]', name="hall"), grid, place)
    assert summary["valid_updates"] == 2
