"""Phones that drop out, answer badly or are late: what is counted, told and refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import NO_PRIVACY, PrivacyConfig
from common.messages import TrainReply, TrainRequest
from server.record.accounts import Accounts
from server.round.result import RoundResult, read_phases
from tests.server.round.deployed import HALL, IDS, Make, accounts, events, metrics, run
from tests.server.town import Town, register

pytestmark = pytest.mark.usefixtures("no_export", "logged", "described_again_at_once")


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


def test_phases_of_waves_count_by_their_updates() -> None:
    result = RoundResult(4, Accounts(str))
    result.add_phases({"training": (1.0, 2.0)}, 30)
    assert result.phase_seconds == {"training": (1.0, 2.0)}
    result.add_phases({}, 5)
    result.add_phases({"training": (5.0, 10.0)}, 10)
    assert result.phase_seconds == {"training": (2.0, 4.0)}


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


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"correct": 10**6}, "it counts 1000000 of"),
        ({"loss": float("nan")}, "a loss is not finite"),
        ({"losses": bytes(7)}, "losses by temperature take 7 bytes"),
        ({"losses": np.full(49, 1e9).tobytes()}, ""),
    ],
)
def test_a_phones_bad_evaluation_is_left_out_and_the_others_count(
    tiny: Make, folders: dict[str, Path], place: Path, caplog: pytest.LogCaptureFixture,
    wrong: dict[str, Any], words: str,
) -> None:  # fmt: skip
    grid = Town(folders)
    grid.evaluated = lambda own: replace(own, **wrong) if own.client == IDS["ben"] else own
    folder = tiny("train.rounds=1", "train.clients-per-round=0")
    summary = run(folder, grid, place)
    assert summary["client_tests"]["clients"] == 2
    (told,) = [line for line in caplog.messages if line.startswith("an evaluation is left out")]
    assert told.startswith(f"an evaluation is left out: ben: {words}")
    assert accounts(folder)["ben"]["refused"] == "0"


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
