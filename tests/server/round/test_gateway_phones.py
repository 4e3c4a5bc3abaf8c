"""For whom a gateway may speak: phones with a token, and what it says of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from common.config import PrivacyConfig
from common.delivery.tokens import revoke_token
from common.errors import FedheadError
from common.identity import client_of_node, client_of_phone
from common.messages import DescribeReply, DescribeRequest
from server.record.progress import Progress
from server.round.admission import Admission
from server.round.backbone_offer import Offer
from server.round.clients import Clients
from server.round.phones import Phones
from server.round.registry import Registry
from server.round.roster import Roster
from simulations.engines.in_process import InProcessGrid
from tests.server.round.deployed import HALL, IDS, NAMES
from tests.server.town import GATEWAY_NODE, Town, add_phone, register

pytestmark = pytest.mark.usefixtures("no_export", "logged", "described_again_at_once")


def test_a_private_run_refuses_a_gateway_that_tells_numbers_of_examples(place: Path) -> None:
    admission = Admission(Roster(place), privacy=PrivacyConfig(epsilon=4.0))
    ids = tuple(IDS.values())
    with pytest.raises(FedheadError, match="tells how many examples"):
        admission.check(GATEWAY_NODE, DescribeReply(ids, (1, 2, 1), False, changing=True))
    admission.check(GATEWAY_NODE, DescribeReply(ids, (1, 1, 1), False, changing=True))


@pytest.mark.parametrize(("mechanism", "seen"), [("poisson", False), ("everyone", True)])
def test_with_secret_cohorts_nobody_notes_when_a_phone_was_there(
    place: Path, mechanism: Any, seen: bool
) -> None:
    privacy = PrivacyConfig(epsilon=4.0, mechanism=mechanism)

    def answer(message: Message, _: Any) -> Message:
        reply = DescribeReply(tuple(IDS.values()), (1, 1, 1), simulated=False, changing=True)
        return Message(reply.write(), reply_to=message)

    grid = InProcessGrid(answer, 0, {})  # type: ignore[arg-type]
    grid._contexts[GATEWAY_NODE] = Town({})._contexts[GATEWAY_NODE]
    registry = Registry(
        grid, DescribeRequest("run", ("a", "b"), 0.1, 3), Offer("f" * 64, bytes),
        admission=Admission(Roster(place), privacy=privacy), deadline_seconds=60,
        progress=Progress(),
    )  # fmt: skip
    noted: list[int] = []
    registry.accounts.see = noted.extend  # type: ignore[method-assign]
    registry.refresh()
    assert len(registry.clients) == 3
    assert bool(noted) is seen


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


@pytest.mark.parametrize(
    ("most", "counts", "words"),
    [
        (1000, (5, 1001, 7), "claims 1001 examples, expected at most 1000"),
        (0, (5, 2**31, 7), f"claims {2**31} examples, expected at most {2**31 - 1}"),
        (2**40, (5, 2**40 - 3, 7), f"claims {2**40 - 3} examples, more than sums can hold"),
    ],
)
def test_what_one_phone_says_that_it_holds_costs_no_other_its_place(
    place: Path, caplog: pytest.LogCaptureFixture, most: int, counts: Any, words: str
) -> None:
    refused: list[tuple[int, str]] = []
    clients = Clients(
        Admission(Roster(place), max_examples=most), lambda node, why: refused.append((node, why))
    )
    for _ in range(3):
        reply = DescribeReply(tuple(IDS.values()), counts, simulated=False, changing=True)
        clients.admit({GATEWAY_NODE: reply.write()})
    assert {i: client.num_examples for i, client in clients.there.items()} == {
        IDS["anna"]: 5, IDS["carla"]: 7,
    }  # fmt: skip
    assert refused == []
    (told,) = [line for line in caplog.messages if "left out" in line]
    assert told.startswith(f"left out: phone ben {words}")


def test_phones_that_were_there_are_not_after_a_description_that_is_refused(place: Path) -> None:
    clients = Clients(Admission(Roster(place)), lambda _node, _why: None)
    good = DescribeReply(tuple(IDS.values()), (5, 6, 7), simulated=False, changing=True)
    clients.admit({GATEWAY_NODE: good.write()})
    assert len(clients.there) == 3
    twice = replace(good, clients=(IDS["anna"],) * 3)
    clients.admit({GATEWAY_NODE: twice.write()})
    assert clients.there == {}


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
