"""Devices with a valid key that lie about themselves or send nonsense change nothing of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from client.app import app as client_app
from common.experiment import run_config
from server.app import run_experiment
from simulations.engines.in_process import InProcessGrid
from simulations.run import read_summary
from tests.server.round.deployed import OPTIONS, Make, accounts, events, run
from tests.server.round.garden import CLIENTS, NODES, Change, Garden, answers, describes, sets

pytestmark = pytest.mark.usefixtures("no_export", "logged")


@pytest.fixture
def devices(kept_devices: list[Path]) -> list[Path]:
    return kept_devices


def many(number: int) -> Change:
    return describes(clients=list(range(number)), num_examples=[54] * number)


def nonsense(message: Message, reply: Message) -> None:
    if message.metadata.message_type == "query.describe":
        reply.content = RecordDict({"\x1b[2J" * 9999: ConfigRecord({"a": 1})})


OTHERS = CLIENTS["kitchen"]
LIES: dict[str, tuple[Change, str]] = {
    "another's client": (describes(clients=[OTHERS]), "attic speaks for kitchen, which it is not"),
    "another's as well": (
        describes(clients=[CLIENTS["attic"], OTHERS], num_examples=[54, 54]),
        "attic sends an invalid description, lists 2 clients, expected at most 1",
    ),
    "a thousand": (many(1000), "attic sends an invalid description, lists 1000 clients"),
    "a million": (many(10**6), "attic sends an invalid description, lists 1000000 clients"),
    "nobody's client": (describes(clients=[77]), "attic speaks for client 77, which it is not"),
    "2^62 examples": (
        describes(num_examples=[2**62]),
        f"attic claims {2**62} examples, expected at most 1000 (round.max-examples-per-client)",
    ),
    "a little more": (describes(num_examples=[1001]), "attic claims 1001 examples, expected at"),
    "fewer than none": (describes(num_examples=[-1]), "attic claims -1 examples"),
    "simulated": (describes(simulated=True), "attic says that it is simulated"),
    "nonsense": (nonsense, "attic sends an invalid description, record 'report' is missing"),
}  # fmt: skip


@pytest.fixture
def head_without_attic(
    tiny: Make, devices: list[Path], garden: Path, request: pytest.FixtureRequest
) -> str:
    """The same run when attic is not there; the images are the same in all tests."""
    known: dict[str, str] = request.session.__dict__.setdefault("_without_attic", {})
    if "head" not in known:
        grid = Garden(devices, away=["attic"])
        known["head"] = run(tiny(*OPTIONS, name="without"), grid, garden)["head_sha256"]
    return known["head"]


@pytest.mark.parametrize("lie", LIES)
def test_who_lies_about_itself_is_refused_by_name_and_changes_nothing(
    tiny: Make, devices: list[Path], garden: Path, head_without_attic: str, lie: str
) -> None:
    change, words = LIES[lie]
    folder = tiny(*OPTIONS, name="lied")
    summary = run(folder, Garden(devices, change), garden)
    assert summary["head_sha256"] == head_without_attic
    assert (summary["clients"], summary["valid_updates"]) == (2, 4)
    assert summary["refused_answers"] == 1
    rows = accounts(folder)
    assert {name: row["refused"] for name, row in rows.items()} == {
        "attic": "1", "hall": "0", "kitchen": "0",
    }  # fmt: skip
    (refused,) = events(folder, "refused")
    assert refused["name"] == "attic"
    assert refused["message"].startswith(words)
    assert refused["message"].endswith(": refused")
    assert len(refused["message"]) < 400
    assert (folder / "events.jsonl").stat().st_size < 20_000


def test_a_deployment_bounds_what_a_device_sends_by_what_the_others_do(
    tiny: Make, devices: list[Path], garden: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def exaggerates(report: ConfigRecord) -> None:
        rows = [1000 * np.frombuffer(row, "<f4") for row in report["field.delta"]]
        report["field.delta"] = [row.tobytes() for row in rows]

    bad, away = tiny(*OPTIONS, name="bad"), tiny(*OPTIONS, name="away")
    grid = Garden(devices, answers("train", exaggerates))
    summary = run(bad, grid, garden)
    assert (summary["valid_updates"], summary["rejected_updates"]) == (4, 2)
    (first, _) = events(bad, "rejected")
    assert first["message"].startswith("round 1: attic: the norm of delta is ")
    honest = run(away, Garden(devices, answers("train", fails)), garden)
    assert summary["head_sha256"] == honest["head_sha256"]


def fails(_report: ConfigRecord) -> None:
    raise ValueError("away")


def test_honest_devices_are_called_by_their_names_everywhere(
    tiny: Make, devices: list[Path], garden: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def declines(message: Message, _reply: Message) -> None:
        if message.metadata.message_type == "train":
            from common.errors import DeclinedError

            raise DeclinedError("trained 20 s ago, it rests 3600 s")

    folder = tiny(*OPTIONS)
    summary = run(folder, Garden(devices, declines), garden)
    assert (summary["valid_updates"], summary["failed_updates"]) == (4, 2)
    for line in (
        "kitchen has joined with 54 examples",
        "round 1: attic declines: trained 20 s ago, it rests 3600 s",
    ):
        assert caplog.messages.count(line) == 1
    (first, _) = events(folder, "declined")
    assert (first["client"], first["name"]) == (CLIENTS["attic"], "attic")
    assert [e["name"] for e in events(folder, "joined")] == ["attic", "hall", "kitchen"]
    numbers = {str(n) for n in (*NODES.values(), *CLIENTS.values())}
    assert not [line for line in caplog.messages if any(n in line for n in numbers)]
    # The owner's log, beside those of the server.
    assert "run tiny: joined it with 54 examples to train on" in caplog.messages
    trained = "run tiny: round 2: trained on 54 examples, loss"
    assert any(line.startswith(trained) for line in caplog.messages)


def test_a_device_with_more_images_than_allowed_uses_as_many_and_says_so(
    tiny: Make, devices: list[Path], garden: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny("train.rounds=1", "train.clients-per-round=0", "round.max-examples-per-client=30")
    summary = run(folder, Garden(devices), garden)
    assert summary["valid_updates"] == 3
    joined = {e["name"]: e["num_examples"] for e in events(folder, "joined")}
    assert set(joined.values()) == {27}  # three of thirty are kept to test with
    assert "hall has joined with 27 examples; 30 images above its limit" in caplog.text
    said = "run tiny: it uses at most 30 images of a device; 30 others are left out, evenly spread"
    assert caplog.messages.count(said) == 3


FALSE_FIGURES: dict[str, tuple[Change, str]] = {
    "more right than there are": (answers("evaluate", sets(correct=[7])), "counts 7 of 6"),
    "huge": (answers("evaluate", sets(num_examples=[2**62], correct=[2**62])), "it counts"),
    "NaN": (answers("evaluate", sets(loss=[float("nan")])), "a loss is not finite"),
    "losses of NaN": (answers("evaluate", sets(losses=[b"\xff" * 392])), "a loss by temperature"),
    "losses cut off": (answers("evaluate", sets(losses=[b"\0" * 391])), "take 391 bytes"),
    "losses without end": (answers("evaluate", sets(losses=[b"\0" * 10**6])), "are (125000,)"),
    "a million": (answers("evaluate", sets(clients=[1] * 10**6)), "lists 1000000 clients"),
}


@pytest.mark.parametrize("case", FALSE_FIGURES)
def test_false_counts_are_refused_by_name(
    tiny: Make, devices: list[Path], garden: Path, case: str
) -> None:
    change, words = FALSE_FIGURES[case]
    folder = tiny("train.rounds=1", "train.clients-per-round=0")
    run(folder, Garden(devices, change), garden)
    (refused,) = events(folder, "refused")
    assert refused["message"].startswith("attic sends an invalid evaluation, ")
    assert words in refused["message"]
    assert accounts(folder)["attic"]["refused"] == "1"


def test_a_flood_of_words_becomes_one_short_clean_line(
    tiny: Make, devices: list[Path], garden: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def shouts(message: Message, _reply: Message) -> None:
        if message.metadata.message_type == "train":
            raise ValueError("\x1b[2J\x1b]0;owned\x07\nround 1/9  accuracy 1.0\u202e" * 300_000)

    folder = tiny("train.rounds=1", "train.clients-per-round=0")
    run(folder, Garden(devices, shouts), garden)
    (failed,) = events(folder, "failed")
    assert failed["message"].startswith("round 1: attic: ")
    assert len(failed["message"]) < 400
    assert all(c.isprintable() for line in caplog.messages for c in line)
    assert (folder / "events.jsonl").stat().st_size < 20_000


def test_a_stock_strategy_hears_only_who_is_who_it_says(
    tiny: Make, devices: list[Path], garden: Path
) -> None:
    def inflates(message: Message, reply: Message) -> None:
        if message.metadata.message_type == "train":
            reply.content["metrics"]["num-examples"] = 10**9  # type: ignore[index]

    stock = (*OPTIONS, "strategy.name=flwr.serverapp.strategy:FedAvg")
    lied = run(tiny(*stock, name="lied"), Garden(devices, inflates), garden)
    told = run(tiny(*stock, name="told"), Garden(devices), garden)
    assert lied["head_sha256"] == told["head_sha256"]
    folder = tiny(*stock, name="claimed")
    claimed = run(folder, Garden(devices, describes(num_examples=[10**9])), garden)
    without = run(tiny(*stock, name="without"), Garden(devices, away=["attic"]), garden)
    assert claimed["head_sha256"] == without["head_sha256"]
    assert accounts(folder)["attic"]["refused"] == "1"


@pytest.mark.parametrize("liar", [0, 2])
def test_without_a_deployment_one_node_cannot_turn_the_run(
    tiny: Make, device_grid: type[InProcessGrid], caplog: pytest.LogCaptureFixture, liar: int
) -> None:
    def app(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type == "query.describe":
            report: Any = reply.content["report"]
            if context.node_config["partition-id"] == liar:
                report["simulated"] = not report["simulated"]
        return reply

    values = {"experiment": str(tiny(*OPTIONS) / "config.toml"), "overrides": ""}
    folder = Path(values["experiment"]).parent
    run_experiment(device_grid(app, 3, values), run_config(values))  # type: ignore[arg-type]
    assert read_summary(folder)["valid_updates"] == 4
    assert f"node {liar + 1} says that it is simulated: refused" in caplog.text
