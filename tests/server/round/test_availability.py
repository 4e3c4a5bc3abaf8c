import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import AvailabilityConfig, Config
from common.errors import ConfigError
from server.round.availability import Availability, simulate
from server.round.build import check_strategy

EVERYONE = tuple(range(1000))


def ask(
    round_number: int = 1, work: int = 100, wanted: int = len(EVERYONE), **keys: float
) -> Availability:
    config = AvailabilityConfig.model_validate({k.replace("_", "-"): v for k, v in keys.items()})
    return simulate(
        EVERYONE,
        dict.fromkeys(EVERYONE, work),
        config,
        wanted=wanted,
        seed=0,
        round_number=round_number,
    )


def test_by_default_everybody_answers() -> None:
    outcome = ask()
    assert outcome == Availability(EVERYONE, (), (), 1.0)  # 100 examples of 0.01 s


def test_as_many_drop_out_as_the_rate_says_and_others_in_another_round() -> None:
    first, second = ask(dropout_rate=0.3), ask(dropout_rate=0.3, round_number=2)
    assert sorted(first.dropped + first.present) == list(EVERYONE)
    assert abs(len(first.dropped) - 300) < 5 * math.sqrt(1000 * 0.3 * 0.7)
    assert first == ask(dropout_rate=0.3)
    assert set(first.present) != set(second.present)


def test_the_same_phones_are_slow_in_every_round() -> None:
    keys = {"straggler_rate": 0.2, "straggler_factor": 10.0, "deadline_seconds": 5.0}
    first, second = ask(**keys), ask(**keys, round_number=2)
    assert first == second
    assert abs(len(first.late) - 200) < 5 * math.sqrt(1000 * 0.2 * 0.8)
    assert first.seconds == 5.0
    without = ask(straggler_rate=0.2, straggler_factor=10.0)
    assert (without.late, without.seconds) == ((), 10.0)


def test_a_round_closes_when_enough_have_answered() -> None:
    outcome = ask(straggler_rate=0.2, straggler_factor=10.0, close_fraction=0.7)
    # All quick ones arrive in the same moment: chance decides which of them count.
    assert (outcome.seconds, len(outcome.present), len(outcome.late)) == (1.0, 700, 300)
    other = ask(round_number=2, straggler_rate=0.2, straggler_factor=10.0, close_fraction=0.7)
    assert other.present != outcome.present


@pytest.mark.parametrize(("share", "n"), [(0.55, 100), (0.07, 100), (0.28, 25), (0.14, 50)])
def test_a_share_of_the_clients_is_counted_exactly(share: float, n: int) -> None:
    config = AvailabilityConfig.model_validate({"close-fraction": share})
    work = dict.fromkeys(range(n), 9)
    outcome = simulate(range(n), work, config, wanted=n, seed=0, round_number=1)
    assert len(outcome.present) == round(share * n)


def test_a_round_closes_when_it_has_as_many_answers_as_it_wants() -> None:
    outcome = ask(wanted=600, dropout_rate=0.2, straggler_rate=0.1)
    assert (len(outcome.present), outcome.seconds) == (600, 1.0)
    assert len(outcome.late) == 1000 - 600 - len(outcome.dropped)


def test_who_waits_for_the_dropped_waits_for_the_deadline() -> None:
    assert ask(dropout_rate=0.5, deadline_seconds=7.0).seconds == 7.0
    assert ask(dropout_rate=0.5, deadline_seconds=7.0, close_fraction=0.3).seconds == 1.0


def test_nobody_may_be_there() -> None:
    config = AvailabilityConfig.model_validate({"dropout-rate": 0.999, "deadline-seconds": 3.0})
    outcome = simulate((1, 2), {1: 5, 2: 5}, config, wanted=2, seed=0, round_number=1)
    assert outcome == Availability((), (1, 2), (), 3.0)


@given(
    st.floats(0, 0.99), st.floats(0, 1), st.floats(1, 20), st.floats(0, 30), st.floats(0.01, 1),
    st.integers(1, 50), st.integers(1, 1000),
)  # fmt: skip
def test_everybody_is_accounted_for(
    dropout: float,
    slow: float,
    factor: float,
    deadline: float,
    close: float,
    round_number: int,
    wanted: int,
) -> None:
    outcome = ask(
        round_number, dropout_rate=dropout, straggler_rate=slow, straggler_factor=factor,
        deadline_seconds=deadline, close_fraction=close, wanted=wanted,
    )  # fmt: skip
    assert sorted(outcome.present + outcome.dropped + outcome.late) == list(EVERYONE)
    assert list(outcome.present) == sorted(outcome.present)
    assert len(outcome.present) <= wanted


@pytest.mark.parametrize(
    "settings",
    [
        {"availability": {"dropout-rate": 0.1}},
        {"round": {"over-selection": 0.1}, "train": {"clients-per-round": 5}},
    ],
)
def test_stock_strategies_sample_for_themselves(settings: dict[str, dict[str, float]]) -> None:
    strategy = {"name": "flwr.serverapp.strategy:FedAvg"}
    config = Config.model_validate({"strategy": strategy, **settings})
    with pytest.raises(ConfigError, match="needs one of fedhead's strategies"):
        check_strategy(config)
