"""Who is who in a deployment: devices with a valid key that lie about themselves, in this process.

``attic`` lies, ``hall`` and ``kitchen`` are honest: what they make of a run must not change.
"""

from __future__ import annotations

import csv
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

import server.app
from client.app import app as client_app
from common.config import load_config, parse_overrides
from common.errors import ConfigError, RunError
from common.experiment import run_config
from common.identity import client_of_node
from common.messages import DescribeRequest
from server.app import run_experiment
from server.export.runtime_cards import ExportReport
from server.record.progress import Progress
from server.round.admission import Admission
from server.round.backbone_offer import Offer
from server.round.exchange import Exchange, error_reason
from server.round.join import join, make_registry
from server.round.registry import Registry
from server.round.roster import CLIENT, Roster, client_file, read_roster
from simulations.engines.in_process import InProcessGrid
from simulations.resume import change_run
from simulations.run import open_run, read_summary

Make = Callable[..., Path]
Change = Callable[[Message, Message], None]

# As Flower draws them; the liar is heard first.
NODES = {"attic": 3 * 10**9, "hall": 2**63 + 5 * 10**9, "kitchen": 2**63 + 7 * 10**9}
CLIENTS = {name: client_of_node(node) for name, node in NODES.items()}
OPTIONS = ("train.rounds=2", "train.clients-per-round=0")


@pytest.fixture(autouse=True)
def _no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.app, "export", lambda *_: ExportReport("model", Path(), 0, ""))


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="fedhead")


@pytest.fixture(scope="module")
def devices(
    make_devices: Callable[[Path], list[Path]], tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Three phones' folders for all tests here, which change none: features are computed once."""
    return make_devices(tmp_path_factory.mktemp("phones"))


@pytest.fixture
def garden(tmp_path: Path) -> Path:
    """A deployment's server folder in which three devices are registered."""
    folder = tmp_path / "garden" / "server"
    for name in NODES:
        register(folder, name)
    return folder


def register(folder: Path, name: str) -> None:
    (folder / "devices").mkdir(parents=True, exist_ok=True)
    (folder / "devices" / f"{name}.pub").write_text("ecdsa-sha2-nistp384 ...")
    CLIENT.write(client_file(folder, name), {"client": client_of_node(NODES[name])})


def revoke(folder: Path, name: str) -> None:
    (folder / "devices" / f"{name}.pub").unlink()


def honest(_message: Message, _reply: Message) -> None:
    pass


class Garden(InProcessGrid):
    """Three devices by their nodes' ids; attic's replies are changed on their way."""

    def __init__(self, devices: list[Path], change: Change = honest, away: Iterable[str] = ()):
        def app(message: Message, context: Context) -> Message:
            reply = client_app(message, context)
            if context.node_id == NODES["attic"]:
                change(message, reply)
            return reply

        super().__init__(app, 0, {})  # type: ignore[arg-type]
        for (name, node), folder in zip(NODES.items(), devices, strict=True):
            if name not in away:
                config = {"data": f"folder:{folder / 'images'}", "state": str(folder / "state")}
                self._contexts[node] = Context(
                    run_id=1, node_id=node, node_config=config, state=RecordDict(), run_config={}
                )


def run(folder: Path, grid: InProcessGrid, garden: Path | None) -> Any:
    values = {"experiment": str(folder / "config.toml"), "overrides": ""}
    roster = Roster(garden) if garden else None
    run_experiment(grid, run_config(values), roster=roster)
    return read_summary(folder)


def accounts(folder: Path) -> dict[str, dict[str, str]]:
    rows = csv.DictReader((folder / "devices.csv").read_text().splitlines())
    return {row["name"]: row for row in rows}


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def answers(kind: str, change: Callable[[ConfigRecord], None]) -> Change:
    """Change the report of each reply to a kind of message."""

    def changed(message: Message, reply: Message) -> None:
        if message.metadata.message_type == kind:
            report: Any = reply.content["report"]
            change(report)

    return changed


def sets(**values: Any) -> Callable[[ConfigRecord], None]:
    return lambda report: report.update({key.replace("_", "-"): v for key, v in values.items()})


def describes(**values: Any) -> Change:
    return answers("query.describe", sets(**values))


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


def test_who_answers_twice_or_for_another_is_refused_and_the_first_answer_counts(
    tiny: Make, devices: list[Path], garden: Path
) -> None:
    class Twice(Garden):
        """attic gives each answer twice, and one in kitchen's place before it has spoken."""

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            replies = list(super().pull_messages(message_ids))
            mine = [r for r in replies if r.metadata.src_node_id == NODES["attic"]]
            forged = []
            for reply in replies:
                if mine and reply.metadata.src_node_id == NODES["kitchen"]:
                    false = Message(mine[0].content, reply_to=mine[0])
                    false.metadata.__dict__.update(
                        _reply_to_message_id=reply.metadata.reply_to_message_id,
                        _src_node_id=NODES["attic"],
                    )
                    forged.append(false)
            return [*forged, *replies, *mine]

    first, second = tiny(*OPTIONS, name="once"), tiny(*OPTIONS, name="twice")
    once, twice = run(first, Garden(devices), garden), run(second, Twice(devices), garden)
    assert once["valid_updates"] == twice["valid_updates"] == 6
    assert once["head_sha256"] == twice["head_sha256"]
    reasons = {e["reason"] for e in events(second, "refused")}
    assert reasons == {"answers a message twice", "answers a message that was sent to another node"}
    assert {e["name"] for e in events(second, "refused")} == {"attic"}
    rows = accounts(second)
    assert int(rows["attic"]["refused"]) >= 4
    assert rows["kitchen"]["refused"] == rows["hall"]["refused"] == "0"


class Late(Garden):
    """Only kitchen is there when it is asked for the first few times."""

    asked, few = 0, 4

    def get_node_ids(self) -> Iterable[int]:
        self.asked += 1
        return super().get_node_ids() if self.asked > self.few else [NODES["kitchen"]]


class Endless(Late):
    few = 10**6


@pytest.mark.parametrize(("grid", "resumes", "clients"), [
    (Late, True, 3), (Endless, True, 1), (Late, False, 1),
])  # fmt: skip
def test_a_run_of_all_clients_goes_on_with_a_quorum_of_the_registered_if_they_come(
    tiny: Make, devices: list[Path], garden: Path, monkeypatch: pytest.MonkeyPatch,
    grid: type[Late], resumes: bool, clients: int,
) -> None:  # fmt: skip
    monkeypatch.setattr("server.round.join._JOIN_SECONDS", 60.0 if grid is Late else 2.0)
    config = load_config(tiny(*OPTIONS) / "config.toml")
    data: Any = SimpleNamespace(classes=tuple("0123456789"), content_key="")
    registry = make_registry(
        grid(devices), config, "run", data, Offer("f" * 64, bytes), Progress(),
        Roster(garden),
    )  # fmt: skip
    join(registry, config, data, devices=True, resumes=resumes)
    assert len(registry.clients) == clients


def test_a_latecomer_that_says_nothing_of_the_backbone_is_not_waited_for(
    tiny: Make, devices: list[Path], garden: Path
) -> None:
    class Mute(Garden):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            replies = super().pull_messages(message_ids)
            return [r for r in replies if r.metadata.message_type != "query.backbone"]

    registry = Registry(
        Mute(devices), DescribeRequest("run", tuple("0123456789"), 0.1, 3), Offer("f" * 64, bytes),
        admission=Admission(Roster(garden)), deadline_seconds=60, progress=Progress(),
    )  # fmt: skip
    started = time.monotonic()
    registry.refresh(1.0)
    assert sorted(registry.clients) == sorted(CLIENTS.values())
    assert time.monotonic() - started < 60  # ten minutes, where it was waited for


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


def test_devices_are_added_and_revoked_while_a_run_is_on(
    tiny: Make, devices: list[Path], garden: Path
) -> None:
    class Changing(Garden):
        trained = 0

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            if messages and messages[0].metadata.message_type == "train":
                self.trained += 1
            ids = super().push_messages(messages)
            if self.trained == 1:
                register(garden, "attic")
            if self.trained == 2:
                revoke(garden, "hall")
            return ids

    revoke(garden, "attic")
    (garden / "devices" / "attic.client").unlink()
    folder = tiny("train.rounds=4", "train.clients-per-round=0")
    run(folder, Changing(devices), garden)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["cohort"] for line in lines] == [2, 3, 2, 2]
    said = [e["message"] for e in events(folder, "refused")]
    assert said == [
        "a node with an unknown key is connected, but not registered in this deployment: refused",
        "hall is connected, but not registered in this deployment: refused",
    ]
    (gone,) = events(folder, "gone")
    assert (gone["name"], gone["message"]) == ("hall", "hall was revoked")


@pytest.mark.parametrize("strategy", ["fedavg", "flwr.serverapp.strategy:FedAvg"])
def test_a_device_that_is_revoked_within_a_round_is_said_to_be(
    tiny: Make, devices: list[Path], garden: Path, strategy: str
) -> None:
    class Revoking(Garden):
        """One device is revoked, and another dies, before they answer."""

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            ids = dict(zip(super().push_messages(messages), messages, strict=True))
            if messages and messages[0].metadata.message_type == "train":
                revoke(garden, "hall")
                silent = {CLIENTS["hall"], CLIENTS["attic"]}
                for name, message in ids.items():
                    if client_of_node(message.metadata.dst_node_id) in silent:
                        self.lost.add(name)
            return list(ids)

        lost: ClassVar[set[str]] = set()

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return super().pull_messages([name for name in message_ids if name not in self.lost])

    folder = tiny(
        "train.rounds=1", "train.clients-per-round=0", "round.quorum=0.3",
        "round.deadline-seconds=2", f"strategy.name={strategy}",
    )  # fmt: skip
    run(folder, Revoking(devices), garden)
    said = {e["name"]: e["reason"] for e in events(folder, "failed")}
    assert said == {"hall": "it was revoked", "attic": "no answer"}


def test_with_nobody_let_in_the_run_says_why_by_name(
    tiny: Make, devices: list[Path], garden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.round.join._JOIN_SECONDS", 0.1)
    grid = Garden(devices, describes(clients=[CLIENTS["hall"]]), away=["hall", "kitchen"])
    with pytest.raises(RunError, match="1 are needed; attic speaks for hall, which it is not$"):
        run(tiny(*OPTIONS), grid, garden)


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


def test_the_roster_holds_those_whose_registration_is_whole(
    garden: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (garden / "devices" / "new.pub").write_text("not registered yet")
    (garden / "devices" / "torn.pub").write_text("its id is no number")
    (garden / "devices" / "torn.client").write_text("12\x00")
    roster = read_roster(garden)
    assert {name: device.client for name, device in roster.items()} == CLIENTS
    assert "torn is left out: " in caplog.text
    with pytest.raises(RunError, match="devices is missing: fedhead deploy writes it"):
        read_roster(garden / "elsewhere")


def test_an_answer_that_is_nobodys_is_not_waited_for_twice() -> None:
    class Once(Garden):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            replies = list(super().pull_messages(message_ids))
            for reply in replies:
                reply.metadata.__dict__["_reply_to_message_id"] = "nobody's"
            return replies

    grid = Once.__new__(Once)
    InProcessGrid.__init__(grid, lambda m, c: Message(RecordDict(), reply_to=m), 1, {})  # type: ignore[arg-type]
    message = Message(RecordDict(), dst_node_id=1, message_type="query.describe")
    exchange = Exchange(grid, [message], 0.1)
    assert list(exchange) == []
    assert list(exchange.outstanding.values()) == [1]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("<class 'ValueError'>:<'out of\nbattery'>", "ValueError: out of battery"),
        ("<class 'common.errors.DataError'>:<'no such folder'>", "no such folder"),
        ("ClientApp stopped responding.", "ClientApp stopped responding."),
        ("", "error 2"),
    ],
)
def test_what_went_wrong_on_a_node_is_one_line(words: str, line: str) -> None:
    from flwr.app import Error

    message = Message(RecordDict(), dst_node_id=1, message_type="train")
    assert error_reason(Message(Error(2, words), reply_to=message)) == line


def test_no_two_messages_have_an_id_that_another_device_could_compute() -> None:
    class Silent(InProcessGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            self.sent = [(m.metadata.group_id, m.object_id) for m in messages]
            return [name for _, name in self.sent]

    ids = set()
    for _ in range(3):
        grid = Silent(client_app, 1, {})
        message = Message(RecordDict(), dst_node_id=1, message_type="train", group_id="7")
        message.metadata.__dict__["_created_at"] = 1.0  # all that it says is known to others
        Exchange(grid, [message], 0.0)
        ((group, name),) = grid.sent
        assert group.startswith("7 ")
        ids.add(name)
    assert len(ids) == 3


def test_only_the_listed_devices_train_and_by_the_optimizer_that_is_asked_for(
    tiny: Make, devices: list[Path], garden: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listed = 'train.clients=["attic","hall"]'
    every = ("train.clients-per-round=0", "train.lr=0.003")
    folder = tiny(*OPTIONS, *every, listed, "train.optimizer=adam")
    summary = run(folder, Garden(devices), garden)
    assert summary["clients"] == 2
    rows = accounts(folder)
    assert {name for name in rows if int(rows[name]["valid"])} == {"attic", "hall"}
    assert "kitchen is not in train.clients: left out" in caplog.text
    plain = run(tiny(*OPTIONS, *every, listed, name="sgd"), Garden(devices), garden)
    assert plain["head_sha256"] != summary["head_sha256"]


def test_a_run_continues_without_a_listed_device_that_was_revoked(
    tiny: Make, devices: list[Path], garden: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny("train.rounds=1", "train.clients-per-round=0", 'train.clients=["attic","hall"]')
    run(folder, Garden(devices), garden)
    change_run(folder, open_run(folder), parse_overrides(["train.rounds=2"]))
    revoke(garden, "attic")
    assert run(folder, Garden(devices), garden)["rounds"] == 2
    assert "train.clients lists 'attic', expected names of the devices here: hall" in caplog.text
    change_run(folder, open_run(folder), parse_overrides(["train.rounds=3"]))
    revoke(garden, "hall")
    with pytest.raises(ConfigError, match="train.clients lists 'attic'"):
        run(folder, Garden(devices), garden)


def test_what_a_deployment_cannot_do_ends_it_before_the_first_round(
    tiny: Make, devices: list[Path], garden: Path, tmp_path: Path
) -> None:
    (tmp_path / "losses_for_devices.py").write_text("def own(logits, labels): return logits.sum()")
    before = [*sys.path]
    try:
        for option, message in (
            ("train.loss=losses_for_devices:own", "train.loss='losses_for_devices:own' is for sim"),
            ('train.clients=["attic","kim"]', "lists 'kim', expected names of the devices here: a"),
            ("train.clients=[0,1]", "lists 0, expected names of the devices here: attic, "),
        ):
            folder = tiny(*OPTIONS, "train.clients-per-round=1", option, name=option[6:10] + "x")
            with pytest.raises(ConfigError, match=message):
                run(folder, Garden(devices), garden)
            assert not (folder / "metrics.jsonl").exists()
            shutil.rmtree(folder)
    finally:
        sys.path[:] = before
