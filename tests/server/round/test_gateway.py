"""Rounds of phones behind a gateway, in this process: who takes part, and what is made of it."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Error, Message, RecordDict

import server.app
from common.config import NO_PRIVACY, PrivacyConfig
from common.delivery.tokens import revoke_token
from common.errors import ConfigError, FedheadError
from common.experiment import run_config
from common.identity import client_of_node, client_of_phone
from common.messages import (
    DescribeReply,
    DescribeRequest,
    EvaluateRequest,
    TrainReply,
    TrainRequest,
    payload_bytes,
)
from common.types import ClientPlan, Head, LocalTraining
from server.app import run_experiment
from server.export.runtime_cards import ExportReport
from server.record.accounts import Accounts
from server.record.progress import Progress
from server.record.runfolder import HEAD
from server.round import descriptions
from server.round.admission import Admission
from server.round.backbone_offer import Offer
from server.round.clients import Clients
from server.round.descriptions import Descriptions
from server.round.exchange import Again, Exchange
from server.round.phones import Phones
from server.round.registry import Registry
from server.round.result import RoundResult, read_phases
from server.round.roster import Roster
from simulations.engines.in_process import InProcessGrid
from simulations.run import read_summary
from tests.server.town import GATEWAY_NODE, Town, add_phone, register

Make = Callable[..., Path]

NAMES = ("anna", "ben", "carla")
IDS = {name: client_of_phone(name) for name in NAMES}
HALL = 3 * 10**9
OPTIONS = ("train.rounds=2", "train.clients-per-round=0")


@pytest.fixture(autouse=True)
def _no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.app, "export", lambda *_: ExportReport("model", Path(), 0, ""))


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="fedhead")


@pytest.fixture(autouse=True)
def _described_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptions, "_CHANGED_SECONDS", 0.0)


@pytest.fixture(scope="module")
def folders(
    make_devices: Callable[[Path], list[Path]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The phones' folders of images, for all tests here."""
    return dict(zip(NAMES, make_devices(tmp_path_factory.mktemp("phones")), strict=True))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A deployment's server folder with a gateway and three phones."""
    folder = tmp_path / "town" / "server"
    register(folder, "gateway", GATEWAY_NODE)
    for name in NAMES:
        add_phone(folder, name)
    return folder


def run(folder: Path, grid: Any, place: Path) -> Any:
    values = {"experiment": str(folder / "config.toml"), "overrides": ""}
    run_experiment(grid, run_config(values), roster=Roster(place))
    return read_summary(folder)


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def accounts(folder: Path) -> dict[str, dict[str, str]]:
    rows = csv.DictReader((folder / "devices.csv").read_text().splitlines())
    return {row["name"]: row for row in rows}


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
    first, second = metrics(folder)
    assert not {"dropouts", "phase-seconds"} & first.keys()
    assert [line["failed"] for line in (first, second)] == [1, 1]
    assert [line["rejected"] for line in (first, second)] == [0, 0]
    (told, _) = events(folder, "dropouts")
    assert told["message"].endswith("1 phone drops out: the run is private, so why is not told")
    assert "lap" not in (folder / "events.jsonl").read_text()


def test_a_private_run_refuses_a_gateway_that_tells_numbers_of_examples(place: Path) -> None:
    admission = Admission(Roster(place), privacy=PrivacyConfig(epsilon=4.0))
    ids = tuple(IDS.values())
    with pytest.raises(FedheadError, match="tells how many examples"):
        admission.check(GATEWAY_NODE, DescribeReply(ids, (1, 2, 1), False, changing=True))
    admission.check(GATEWAY_NODE, DescribeReply(ids, (1, 1, 1), False, changing=True))


def test_a_gateway_is_told_the_time_and_how_many_updates_suffice(
    tiny: Make, folders: dict[str, Path], place: Path
) -> None:
    register(place, "hall", HALL)
    grid = Town(folders, {HALL: folders["anna"]})
    folder = tiny(
        "train.rounds=1", "train.clients-per-round=3", "round.over-selection=0.3",
        "round.deadline-seconds=600",
    )  # fmt: skip
    run(folder, grid, place)
    describe, *_ = grid.asked(DescribeRequest)
    (train,), (evaluate,) = (grid.asked(kind) for kind in (TrainRequest, EvaluateRequest))
    assert describe.fingerprint == train.fingerprint != ""
    # All four are asked for three updates, so of three phones 3 x 3 / 4 rounded up suffice.
    assert len(train.clients) == 3
    assert train.enough == 3
    assert 590 < train.seconds <= 600
    assert 590 < evaluate.seconds <= 600


@pytest.mark.parametrize(
    ("clients", "cohort", "wanted", "enough"),
    [(130, 130, 100, 100), (65, 130, 100, 50), (7, 13, 10, 6), (3, 3, 3, 3), (1, 13, 10, 1)],
)
def test_enough_is_a_gateways_share_of_the_wanted_updates(
    clients: int, cohort: int, wanted: int, enough: int
) -> None:
    from server.round.collect import Collector

    result = SimpleNamespace(cohort=cohort, wanted=wanted)
    none: Any = None
    collector = Collector(none, none, none, "sum", none, result, "")  # type: ignore[arg-type]
    assert collector._enough(clients) == enough


def test_other_nodes_messages_keep_their_bytes() -> None:
    head = Head.zeros(3, 4)
    training = LocalTraining(lr=0.1, local_epochs=1, batch_size=8)
    request = TrainRequest(head, ClientPlan(), training, (1,), 1, "run", 3, "f" * 64, "sum")
    size = payload_bytes(request.write())
    assert not {"seconds", "enough"} & request.write()["config"].keys()
    told = replace(request, seconds=9.0, enough=2)
    assert payload_bytes(told.write()) > size
    assert TrainRequest.read(told.write()).enough == 2
    describe = DescribeRequest("run", ("a", "b"), 0.1, 3)
    assert "fingerprint" not in describe.write()["config"]
    assert "phases" not in TrainReply("ab").write()["report"]
    phases = np.arange(8, dtype="<f8").tobytes()
    assert TrainReply.read(TrainReply("ab", phases=phases).write()).phases == phases


def test_drop_outs_are_counted_by_reason_and_are_no_fault_of_phones(
    tiny: Make, folders: dict[str, Path], place: Path
) -> None:
    folder = tiny("train.rounds=1", "train.clients-per-round=0", "round.quorum=0.3")
    grid = Town(folders)
    grid.rejecting = {IDS["anna"]: "late", IDS["ben"]: "declined: no Wi-Fi"}
    grid.change = lambda _, reply: replace(reply, phases=np.arange(8, dtype="<f8").tobytes())
    run(folder, grid, place)
    (line,) = metrics(folder)
    assert line["dropouts"] == {"late": 1, "declined": 1}
    assert (line["valid"], line["failed"], line["rejected"]) == (1, 2, 0)
    assert line["phase-seconds"]["training"] == [4.0, 5.0]
    (told,) = events(folder, "dropouts")
    assert told["message"] == "round 1: 2 phones drop out: 1 late, 1 declined"
    assert (told["late"], told["declined"]) == (1, 1)
    assert accounts(folder)["anna"]["failed"] == "1"
    assert accounts(folder)["anna"]["rejected"] == accounts(folder)["anna"]["refused"] == "0"


def drop_out(
    reasons: dict[int, str], *, enough: bool, privacy: PrivacyConfig = NO_PRIVACY
) -> RoundResult:
    result = RoundResult(4, Accounts(str, counts=not privacy.hides_cohorts), privacy)
    result.drop_out(reasons, enough=enough)
    return result


def test_whoever_was_slower_than_enough_others_is_not_late() -> None:
    reasons = dict.fromkeys(range(30), "late")
    assert drop_out(reasons, enough=True).dropouts == {"over-selected": 30}
    assert drop_out(reasons, enough=False).dropouts == {"late": 30}


def test_many_drop_outs_take_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    words = [
        "late",
        "declined: not charging",
        "failed: no memory",
        "unable: momentum",
        "refused: above-norm",
    ]
    result = drop_out({i: words[i % 5] for i in range(5000)}, enough=False)
    assert result.dropouts == {
        "late": 1000, "declined": 1000, "failed": 1000, "unable": 1000, "refused": 1000,
    }  # fmt: skip
    assert (result.failed, result.rejected) == (4000, 1000)
    assert result.accounts.total("failed") == 4000
    assert result.accounts.total("rejected") == 1000
    *named, last = caplog.messages
    assert named == [f"round 4: {i}: refused: above-norm" for i in (4, 9, 14, 19, 24)]
    assert last == (
        "round 4: 5,000 phones drop out: 1,000 late, 1,000 declined, 1,000 failed, 2,000 others"
    )
    assert max(map(len, caplog.messages)) <= 100


def test_with_secret_cohorts_no_line_tells_who_was_asked(caplog: pytest.LogCaptureFixture) -> None:
    secret = PrivacyConfig(epsilon=4.0, mechanism="poisson")
    assert secret.hides_cohorts
    drop_out({1: "late", 2: "refused: above-norm"}, enough=False, privacy=secret)
    result = RoundResult(4, Accounts(str, counts=False), secret)
    result.fail_phones([1, 2], "no answer", "silent")
    assert caplog.messages == []


@pytest.mark.parametrize(
    "data", [b"", bytes(63), np.full(8, np.nan).tobytes(), np.full(8, -1.0).tobytes()]
)
def test_seconds_that_are_none_are_not_told(data: bytes) -> None:
    assert read_phases(data) == {}


def test_a_phones_bad_row_is_refused_and_the_others_count(
    tiny: Make, folders: dict[str, Path], place: Path
) -> None:
    def spoil(request: TrainRequest, reply: TrainReply) -> TrainReply:
        rows = list(reply.payloads["delta"])
        rows[1] = np.full(len(rows[1]) // 4, np.nan, "<f4").tobytes()
        return replace(reply, payloads={"delta": tuple(rows)})

    grid = Town(folders)
    grid.change = spoil
    folder = tiny("train.rounds=1", "train.clients-per-round=0")
    summary = run(folder, grid, place)
    bad = sorted(IDS.values())[1]
    assert summary["valid_updates"] == 2
    assert metrics(folder)[0]["dropouts"] == {"refused": 1}
    (told,) = events(folder, "rejected")
    assert (told["client"], told["reason"][:9]) == (bad, "refused: ")


def test_what_is_wrong_with_the_gateway_is_not_its_phones_fault(
    tiny: Make, folders: dict[str, Path], place: Path
) -> None:
    register(place, "hall", HALL)
    grid = Town(folders, {HALL: folders["anna"]})
    grid.change = lambda _, reply: replace(reply, fingerprint="ab")
    folder = tiny("train.rounds=1", "train.clients-per-round=0", "round.quorum=0.2")
    run(folder, grid, place)
    assert metrics(folder)[0]["dropouts"] == {"failed": 3}
    assert {row["rejected"] for row in accounts(folder).values()} == {"0"}
    (told,) = events(folder, "failed")
    assert told["message"].startswith("round 1: gateway, 3 phones: features are of backbone ab")


def test_who_the_gateway_may_speak_for(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    register(place, "hall", HALL)
    refused: list[tuple[int, str]] = []
    admission = Admission(Roster(place))
    clients = Clients(admission, lambda node, why: refused.append((node, why)))

    def describe(node: int, *ids: int, changing: bool = True) -> set[int]:
        reply = DescribeReply(ids, (5,) * len(ids), simulated=False, changing=changing)
        return clients.admit({node: reply.write()})

    stranger, hall = client_of_phone("nobody"), client_of_node(HALL)
    assert describe(HALL, hall, changing=False) == {HALL}
    assert describe(GATEWAY_NODE, IDS["anna"], stranger, hall) == {GATEWAY_NODE}
    assert clients.there.keys() == {hall, IDS["anna"]}
    assert refused == [
        (GATEWAY_NODE, f"speaks for client {stranger}, which is no phone of this deployment")
    ]
    # Its next description replaces this one, and it is no newcomer then.
    assert describe(GATEWAY_NODE, IDS["ben"], IDS["carla"]) == set()
    assert clients.there.keys() == {hall, IDS["ben"], IDS["carla"]}
    revoke_token(place / "delivery", "ben")
    describe(GATEWAY_NODE, IDS["ben"], IDS["carla"])
    assert clients.there.keys() == {hall, IDS["carla"]}
    assert len(refused) == 1  # the gateway may be slower to see it
    add_phone(place, "dora")
    describe(GATEWAY_NODE, client_of_phone("dora"))
    assert clients.known >= {hall, *IDS.values(), client_of_phone("dora")} - {stranger}
    # A device has one client, and does not change it.
    describe(HALL, hall)
    assert refused[-1] == (HALL, "says that its clients change, which only a gateway's do")
    describe(GATEWAY_NODE, *[IDS["carla"]] * 2)
    assert refused[-1] == (GATEWAY_NODE, "names a client twice")
    joined = [line for line in caplog.messages if "phone" in line]
    assert joined == [
        "gateway: 1 phone is there",
        "gateway: 2 phones are there",
        "gateway: 1 phone is there",
    ]


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


def test_a_lost_message_is_sent_again_and_the_round_is_whole(
    tiny: Make, folders: dict[str, Path], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.round.gateways._SOONEST_SECONDS", 0.5)
    grid = Town(folders)
    grid.lost = 1
    folder = tiny("train.rounds=1", "train.clients-per-round=0", "round.deadline-seconds=60")
    monkeypatch.setattr("server.round.gateways._SHARE", 0.01)
    summary = run(folder, grid, place)
    first, second = grid.asked(TrainRequest)
    assert (
        replace(first, seconds=0.0).write()["config"]
        == replace(second, seconds=0.0).write()["config"]
    )
    assert second.seconds < first.seconds
    assert summary["valid_updates"] == 3
    assert events(folder, "refused") == []


class Slow(InProcessGrid):
    """One node, whose replies can be fetched only once they are let go."""

    def __init__(self) -> None:
        super().__init__(lambda m, _: Message(RecordDict(), reply_to=m), 1, {})  # type: ignore[arg-type]
        self.sent: list[str] = []
        self.pulled: list[str] = []
        self.free: Callable[[], Iterable[str]] = list

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        names = list(super().push_messages(messages))
        self.sent += names
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        names = [name for name in message_ids if name in set(self.free())]
        self.pulled += names
        return super().pull_messages(names)


def exchange(
    grid: Slow, seconds: float, pause: float, refused: list[Any] | None = None
) -> Exchange:
    def message(_node: int = 1) -> Message:
        return Message(RecordDict(), dst_node_id=1, message_type="train")

    def refuse(*words: Any) -> None:
        if refused is not None:
            refused.append(words)

    return Exchange(grid, [message()], seconds, refuse=refuse, again=Again([1], pause, message))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_whichever_answer_comes_first_counts_and_the_others_are_no_cheating(which: int) -> None:
    grid, refused = Slow(), list[Any]()
    grid.free = lambda: (
        grid.sent[which : which + 1] if which < 2 else grid.sent if len(grid.sent) > 2 else []
    )
    found = list(exchange(grid, 60, 0.1, refused))
    assert [node for node, _ in found] == [1]
    assert refused == []


def test_what_flower_says_in_a_gateways_place_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.round.exchange._SOON_SECONDS", 0.1)
    grid = Slow()
    answer = grid._app
    errors = [Error(8, "crashed"), Error(5, "away")]
    grid._app = lambda m, c: Message(errors.pop(), reply_to=m) if errors else answer(m, c)  # type: ignore[assignment]
    grid.free = lambda: grid.sent
    ((node, reply),) = exchange(grid, 60, 30)
    assert (node, reply.has_error()) == (1, False)
    assert len(grid.sent) == 3


def test_a_gateways_own_error_is_its_answer() -> None:
    grid = Slow()
    grid._app = lambda m, _: Message(Error(2, "no files"), reply_to=m)  # type: ignore[assignment]
    grid.free = lambda: grid.sent
    ((_, reply),) = exchange(grid, 60, 30)
    assert reply.error.reason == "no files"
    assert len(grid.sent) == 1


def test_a_silent_gateway_is_asked_again_until_the_deadline() -> None:
    grid = Slow()
    silent = exchange(grid, 1.0, 0.2)
    assert list(silent) == []
    assert len(grid.sent) >= 3
    assert set(silent.outstanding.values()) == {1}


def test_a_silent_gateways_phones_are_no_stragglers_and_its_silence_is_one_line(
    tiny: Make, folders: dict[str, Path], place: Path
) -> None:
    register(place, "hall", HALL)
    grid = Town(folders, {HALL: folders["anna"]})
    grid.lost = 1
    folder = tiny(
        "train.rounds=2",
        "train.clients-per-round=0",
        "round.quorum=0.2",
        "round.deadline-seconds=3",
    )
    run(folder, grid, place)
    first, second = metrics(folder)
    assert (first["dropouts"], first["valid"]) == ({"silent": 3}, 1)
    assert (second["dropouts"], second["valid"]) == ({}, 4)
    (told,) = events(folder, "failed")
    assert told["message"] == "round 1: gateway, 3 phones: no answer"


def test_a_gateway_is_described_again_after_some_seconds_and_if_a_question_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(descriptions, "_CHANGED_SECONDS", 5.0)
    monkeypatch.setattr(descriptions, "time", SimpleNamespace(monotonic=lambda: now))
    grid, request = Slow(), DescribeRequest("run", ("a", "b"), 0.1, 3)
    asking = Descriptions(grid, request, "f" * 64, {1}.__contains__, print)
    grid.free = lambda: grid.sent
    assert asking.due({1, 2}, {2}) == [1, 2]
    answers, _ = asking.ask([1], 0.0)
    assert answers.keys() == {1}
    now += 4.9
    assert asking.due({1, 2}, set()) == []
    now += 0.2
    assert asking.due({1, 2}, set()) == [1]
    grid.free = list
    assert asking.ask([1], 0.0) == ({}, {})
    assert asking.is_waiting
    now += 14.9
    assert asking.due({1}, set()) == []
    now += 0.2
    assert asking.due({1}, set()) == [1]
    assert asking.ask([1], 0.0) == ({}, {})
    grid.free = lambda: grid.sent[-1:]
    answers, _ = asking.ask([], 0.0)
    assert answers.keys() == {1}
    assert not asking.is_waiting  # the lost question is not waited for


def test_a_gateway_that_fails_has_no_phones_until_it_answers(place: Path) -> None:
    state = {"error": ""}

    def answer(message: Message, _: Any) -> Message:
        if state["error"]:
            raise FedheadError(state["error"])
        if message.metadata.message_type == "query.describe":
            reply = DescribeReply(tuple(IDS.values()), (5, 5, 5), simulated=False, changing=True)
            return Message(reply.write(), reply_to=message)
        raise FedheadError("no files for phones: fedhead run --deployment writes them")

    grid = InProcessGrid(answer, 0, {})  # type: ignore[arg-type]
    grid._contexts[GATEWAY_NODE] = Town({})._contexts[GATEWAY_NODE]
    registry = Registry(
        grid, DescribeRequest("run", ("a", "b"), 0.1, 3), Offer("f" * 64, bytes),
        admission=Admission(Roster(place)), deadline_seconds=60, progress=Progress(),
    )  # fmt: skip
    registry.refresh()
    assert registry.clients.keys() == set(IDS.values())
    assert registry.population == 3
    assert all(map(registry.is_phone, registry.clients))
    state["error"] = "its service does not answer"
    registry.refresh()
    assert registry.clients == {}
    assert registry.complaints() == "; gateway: its service does not answer"
    state["error"] = ""
    registry.refresh()
    assert len(registry.clients) == 3


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


def test_phones_are_the_names_with_a_valid_token_and_no_key(place: Path) -> None:
    register(place, "hall", HALL)
    add_phone(place, "hall")
    (place / "devices" / "new.pub").write_text("not registered yet")
    add_phone(place, "new")
    roster = Roster(place)
    assert roster.names == ["anna", "ben", "carla", "hall"]
    assert dict(roster.phones) == {i: name for name, i in IDS.items()}
    assert Admission(roster).registered == 4
    assert Admission(roster, listed=["anna", "hall"]).registered == 2
    revoke_token(place / "delivery", "ben")
    roster.refresh()
    assert roster.names == ["anna", "carla", "hall"]
    assert roster.has_lost(IDS["ben"])
    assert roster.name(IDS["ben"]) == "ben"


def test_without_a_gateway_a_token_is_for_fetching_models_alone(place: Path) -> None:
    register(place, "hall", HALL)
    (place / "devices" / "gateway.pub").unlink()
    roster = Roster(place)
    assert roster.names == ["hall"]
    assert not roster.is_gateway(GATEWAY_NODE)
    assert not Admission(roster).has_phones


def test_of_many_tokens_only_those_that_changed_are_read(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import server.round.phones as module

    read, state = list[str](), module.token_state

    def noted(folder: Path, name: str) -> Any:
        read.append(name)
        return state(folder, name)

    monkeypatch.setattr(module, "token_state", noted)
    phones = Phones(place)
    phones.refresh(())
    assert sorted(read) == [*NAMES]
    phones.refresh(())
    phones.refresh(("ben",))
    assert sorted(phones.names.values()) == ["anna", "carla"]
    assert len(read) == 3
    add_phone(place, "dora")
    revoke_token(place / "delivery", "anna")
    (place / "delivery" / "tokens" / "ben").unlink()
    phones.refresh(())
    assert sorted(read[3:]) == ["anna", "dora"]
    assert sorted(phones.names.values()) == ["carla", "dora"]
