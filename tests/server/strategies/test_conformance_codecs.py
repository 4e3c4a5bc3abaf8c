"""Each strategy with each codec: it learns with what it tolerates, and the rest is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from client.client_round import ClientRound
from client.local import client_update
from client.memory import ClientMemory
from common.codecs import CODECS
from common.codecs.uplink import Uplink
from common.config import load_config, parse_overrides
from common.errors import ConfigError
from common.fields import check_plausible
from common.messages import TrainRequest
from common.plausible import Limits
from common.types import Affine, ClientPlan, FeatureSet, Head, LocalTraining, UpdateBatch
from common.updates import added_up, client_weights, joined
from common.validate import check_fields
from server.round.build import check_strategy
from server.round.codecs import SHARED, encoded, first_step, next_step, tolerated
from server.strategies import STRATEGIES, build_strategy, first_plan
from server.strategy import RoundContext, Strategy, with_metrics

pytestmark = pytest.mark.wide

K, D, CLIENTS = 4, 40, 6
AFFINE = Affine(np.full(D, 0.01, np.float32), np.full(D, 128.0, np.float32))
TRAINING = LocalTraining(lr=0.05, local_epochs=2, batch_size=10)
ROUNDS = 12
FLOATS, SUMS = ("int8", "drive", "eden"), ("gram-int8",)
# What the rule and the strategies say, written out once more: a change of it should be meant.
EXPECTED = {
    **dict.fromkeys(
        ("fedavg", "fedprox", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "fednova", "qfedavg",
         "feddyn"), (*FLOATS, SHARED),
    ),
    "scaffold": ("int8",),
    **dict.fromkeys(
        ("median", "trimmed_mean", "krum", "multikrum", "bulyan", "geometric_median",
         "centered_clipping", "norm_clipping"), ("int8",),
    ),
    **dict.fromkeys(("fedncm", "fed3r", "afl", "lda", "fedcof", "ditto"), SUMS),
}  # fmt: skip
PAIRS = [(name, codec) for name, codecs in EXPECTED.items() for codec in ("none", *codecs)]


def features(client: int) -> FeatureSet:
    """Examples of all classes, more of one than of the others."""
    rng = np.random.default_rng(client)
    labels = np.where(rng.random(50) < 0.5, client % K, rng.integers(0, K, 50))
    means = np.random.default_rng(99).normal(128, 25, (K, D))
    q = np.clip(rng.normal(means[labels], 40), 0, 255).astype(np.uint8)
    return FeatureSet(q, labels, AFFINE, "f")


DATA = [features(client) for client in range(CLIENTS)]
TESTS = [features(100 + client) for client in range(CLIENTS)]


def learned(strategy: Strategy[object], codec: str, folder: Path) -> float:
    """Accuracy after rounds of the real clients' code, over real payloads."""
    head, step = Head.zeros(K, D), first_step(TRAINING.lr, AFFINE)
    state, number = strategy.init(head), 0
    for number in range(1, 2 if first_plan(strategy).kind == "statistics" else ROUNDS + 1):
        context = RoundContext(
            number, CLIENTS, CLIENTS, lr=TRAINING.lr, affine=AFFINE, zero_point=0, seed=0
        )
        plan = encoded(strategy.plan(state, context), codec, step)
        rows = joined(round_of(strategy, plan, head, number, folder))
        if strategy.each is not None:
            rows = strategy.each(state, head, rows)
        if strategy.reduce == "sum" or strategy.each is not None:
            rows = added_up(rows)
        given = strategy.aggregate(state, head, rows, context)
        state, head, _ = with_metrics(given, strategy.name)
        step = next_step(plan, rows) or step
    x, labels = (np.concatenate([getattr(f, a) for f in TESTS]) for a in ("x", "labels"))
    return float(((x @ head.matrix.T).argmax(axis=1) == labels).mean())


def round_of(
    strategy: Strategy[object], plan: ClientPlan, head: Head, number: int, folder: Path
) -> list[UpdateBatch]:
    everyone = tuple(range(CLIENTS))
    counted = (number - 1,) * CLIENTS if plan.correction != "none" else ()
    request = TrainRequest(
        head, plan, TRAINING, everyone, number, "r", 0, "f", strategy.reduce, memory_rounds=counted
    )
    client_round, uplink = ClientRound(request, ClientMemory(folder, durable=False)), request.uplink
    batches = []
    for client in everyone:
        payloads = uplink.encode(client, client_update(client_round, client, DATA[client]).fields)
        fields = uplink.decode(client, payloads)
        check_fields(fields, uplink.layouts, 0.0)
        check_plausible(fields, Limits(50, 10, uplink.codec.rounding))
        count = np.array([50])
        row = {name: array[None] for name, array in fields.items()}
        batches.append(UpdateBatch(((client,),), count, client_weights(plan, count), row))
    return batches


@pytest.mark.parametrize(("name", "codec"), PAIRS)
def test_it_learns_with_each_codec_that_it_tolerates(name: str, codec: str, tmp_path: Path) -> None:
    assert learned(build_strategy(name), codec, tmp_path) > 0.75  # chance is 0.25


def overrides(name: str, codec: str) -> list[str]:
    return [f"strategy.name={name}", f"codec.up={codec}"]


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_other_codec_is_refused_with_the_reason_and_what_would_do(name: str) -> None:
    strategy = build_strategy(name)
    allowed = {"none", *EXPECTED[name]}
    assert set(tolerated(strategy, first_plan(strategy))) == allowed
    for codec in {*CODECS} - allowed:
        config = load_config(None, parse_overrides(overrides(name, codec)))
        with pytest.raises(ConfigError) as caught:
            check_strategy(config)
        (problem,) = caught.value.problems
        assert problem.startswith(f"codec.up='{codec}': it is for ") or name in problem
        assert problem.endswith(f"{name} goes with none, " + ", ".join(EXPECTED[name]))
    for codec in allowed:
        check_strategy(load_config(None, parse_overrides(overrides(name, codec))))


def test_a_strategy_says_why_it_takes_fewer_than_the_rule_gives() -> None:
    for items, why in (
        (overrides("scaffold", "drive"), "noise would add up in the server's control variate"),
        (
            overrides("scaffold", SHARED),
            "it has one step for all numbers, and scaffold sends",
        ),
        (
            [*overrides("afl", "gram-int8"), "strategy.args.lam=0"],
            "without a penalty, noise in",
        ),
        (overrides("krum", SHARED), "it is for sums of updates that nobody reads, and krum reads"),
        (overrides("krum", "drive"), "krum compares single updates, and its noise is as large as"),
        (
            overrides("fed3r", "drive"),
            "it is for the results of training, and clients of fed3r",
        ),
    ):
        with pytest.raises(ConfigError, match=why):
            check_strategy(load_config(None, parse_overrides(items)))


def test_the_battery_knows_every_strategy_and_codec() -> None:
    assert set(EXPECTED) == set(STRATEGIES)
    assert {"none", *FLOATS, *SUMS, SHARED} == set(CODECS)


def test_a_plan_with_a_codec_is_encoded_only_where_it_is_for(tmp_path: Path) -> None:
    statistics = ClientPlan(kind="statistics", fields=("gram", "moments"))
    assert encoded(statistics, "drive", 0.5).uplink == "none"
    assert encoded(ClientPlan(), "gram-int8", 0.5).uplink == "none"
    assert encoded(statistics, "gram-int8", 0.5).uplink == "gram-int8"
    assert encoded(ClientPlan(), "drive", 0.5).uplink == "drive"
    assert encoded(ClientPlan(), SHARED, 0.5).uplink == "int8-shared:0.5"
    assert encoded(ClientPlan(uplink="eden"), "", 0.5).uplink == "eden"
    assert encoded(ClientPlan(uplink="eden"), "none", 0.5).uplink == "none"
    # Its one number divides, and is never rounded.
    fields = {
        "fair_delta": np.ones((K, D + 1), np.float32),
        "fair_scale": np.full(1, 0.123, np.float32),
    }
    uplink = Uplink(ClientPlan(fields=("fair_delta", "fair_scale"), uplink="drive"), K, D, 0, 1)
    assert uplink.decode(0, uplink.encode(0, fields))["fair_scale"] == fields["fair_scale"]
    assert not uplink.is_transparent
    assert Uplink(statistics, K, D, 0, 1).is_transparent


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("codec.up=dirve", "codec.up='dirve': unknown codec 'dirve', did you mean drive?"),
        ("codec.down=dirve", "codec.down='dirve': unknown codec 'dirve', did you mean drive?"),
        ("codec.down=int8-shared", "codec.down='int8-shared': it is for sums of what many"),
        ("codec.down=gram-int8", "codec.down='gram-int8': it is for statistics, and clients"),
        ("codec.up=int8-shared:x", "codec.up='int8-shared:x': int8-shared:x has no step"),
    ],
)
def test_a_name_that_is_none_is_refused_with_its_key(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_strategy(load_config(None, parse_overrides([override])))
    assert caught.value.problems[0].startswith(words)


def test_a_strategy_of_flowers_takes_no_codec() -> None:
    name = "strategy.name=flwr.serverapp.strategy:FedAvg"
    for key in ("up", "down"):
        config = load_config(None, parse_overrides([name, f"codec.{key}=drive"]))
        with pytest.raises(ConfigError, match="Flower's have a format of their own"):
            check_strategy(config)
    check_strategy(load_config(None, parse_overrides([name, "codec.up=none"])))


def test_the_step_of_a_shared_codec_follows_the_updates_and_is_a_power_of_two() -> None:
    plan = ClientPlan()
    steps = []
    for scale in (1.0, 1.001, 2.0, 0.0):
        delta = np.full((1, K, D + 1), 30 * scale, np.float32)  # of weight 10
        batch = UpdateBatch(((0, 1),), np.array([10]), np.array([10.0]), {"delta": delta})
        steps.append(next_step(plan, batch))
    assert steps == [1.0, 1.0, 2.0, 0.0]  # half of 3, rounded down
    assert first_step(0.05, AFFINE) == 2.0**-11  # below 0.0005
    statistics = UpdateBatch(((0,),), np.array([1]), np.ones(1), {"gram": np.ones((1, 3))})
    assert next_step(ClientPlan(kind="statistics", fields=("gram",)), statistics) == 0.0
