"""What a gateway is asked: how many updates, of which phones, within which time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from common.config import TrainConfig
from common.messages import (
    DescribeRequest,
    EvaluateRequest,
    TrainReply,
    TrainRequest,
    payload_bytes,
)
from common.types import ClientPlan, Head, LocalTraining
from server.round.gateways import evaluating, evaluation_seconds
from tests.server.round.deployed import HALL, Make, run
from tests.server.town import Town, register

pytestmark = pytest.mark.usefixtures("no_export", "logged", "described_again_at_once")


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
    assert train.counts == tuple(grid.counts[i] for i in train.clients)
    assert len({*train.counts}) > 1 or min(train.counts) > 1
    assert 590 < train.seconds <= 600
    assert 590 < evaluate.seconds <= 600
    assert (len(evaluate.clients), evaluate.enough) == (3, 3)


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


def evaluation_config(size: float, over_selection: float, seed: int = 5) -> Any:
    asked = TrainConfig.model_validate({"clients-per-round": size})
    return SimpleNamespace(
        train=asked, round=SimpleNamespace(over_selection=over_selection), seed=seed
    )


@pytest.mark.parametrize(
    ("size", "over_selection", "there", "asked", "enough"),
    [
        (0, 0.3, 5000, 5000, 0),
        (10, 0.0, 5000, 100, 100),
        (10, 0.3, 5000, 100, 77),
        (10, 0.3, 4, 4, 4),
        (1000, 0.3, 5000, 1300, 1000),
        (0.1, 0.25, 5000, 1250, 1000),
    ],
)
def test_as_many_phones_evaluate_as_a_round_asks_or_a_hundred(
    size: float, over_selection: float, there: int, asked: int, enough: int
) -> None:
    phones = [3 * i + 1 for i in range(there)]
    chosen, wanted = evaluating(evaluation_config(size, over_selection), 10_000, phones)
    assert (len(chosen), wanted) == (asked, enough)
    assert chosen == sorted({*chosen})
    assert {*chosen} <= {*phones}


def test_the_seed_chooses_the_phones_that_evaluate() -> None:
    phones = range(1, 2001)
    chosen, _ = evaluating(evaluation_config(10, 0.0), 2000, phones)
    assert evaluating(evaluation_config(10, 0.0), 2000, {*phones})[0] == chosen
    assert evaluating(evaluation_config(10, 0.0, seed=6), 2000, phones)[0] != chosen
    assert max(chosen) > 1500  # not the first ones
    assert min(chosen) < 500


@pytest.mark.parametrize(
    ("deadline", "seconds"), [(60.0, 60.0), (3600.0, 900.0), (1200.0, 600.0), (86_400.0, 21_600.0)]
)
def test_phones_have_a_part_of_the_deadline_to_evaluate(deadline: float, seconds: float) -> None:
    assert evaluation_seconds(deadline) == seconds


def test_other_nodes_messages_keep_their_bytes() -> None:
    head = Head.zeros(3, 4)
    training = LocalTraining(lr=0.1, local_epochs=1, batch_size=8)
    request = TrainRequest(head, ClientPlan(), training, (1,), 1, "run", 3, "f" * 64, "sum")
    size = payload_bytes(request.write())
    assert not {"seconds", "enough", "counts"} & request.write()["config"].keys()
    told = replace(request, seconds=9.0, enough=2, counts=(7,))
    assert payload_bytes(told.write()) > size
    again = TrainRequest.read(told.write())
    assert (again.enough, again.counts) == (2, (7,))
    evaluate = EvaluateRequest(head, (1,), "f" * 64, "run")
    assert not {"seconds", "enough"} & evaluate.write()["config"].keys()
    describe = DescribeRequest("run", ("a", "b"), 0.1, 3)
    assert "fingerprint" not in describe.write()["config"]
    assert "phases" not in TrainReply("ab").write()["report"]
    phases = np.arange(8, dtype="<f8").tobytes()
    assert TrainReply.read(TrainReply("ab", phases=phases).write()).phases == phases
