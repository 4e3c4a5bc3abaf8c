import pytest

from common.config import TrainConfig
from common.schedule import Schedule, ScheduleKind


def rates(kind: ScheduleKind, rounds: int, warmup: int = 0) -> list[float]:
    schedule = Schedule(kind, rounds, warmup, decay_rounds=3, decay_factor=0.1)
    return [schedule.share(number) for number in range(1, rounds + 1)]


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "step"])
def test_every_round_has_a_rate_and_the_first_after_the_warm_up_the_full_one(
    kind: ScheduleKind,
) -> None:
    shares = rates(kind, 20, warmup=4)
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(0 < share <= 1 for share in shares)
    assert shares[4:] == sorted(shares[4:], reverse=True)


def test_schedules_fall_as_they_are_described() -> None:
    assert rates("constant", 3) == [1.0, 1.0, 1.0]
    assert rates("linear", 4) == [1.0, 0.75, 0.5, 0.25]
    assert rates("cosine", 4) == pytest.approx([1.0, 0.8535534, 0.5, 0.1464466])
    assert rates("step", 7) == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01])


def test_a_constant_rate_is_the_configured_one_to_the_bit() -> None:
    for lr in (0.1, 0.03, 1e-7, 3.3):
        assert TrainConfig.model_validate({"lr": lr}).rate(7) == lr
