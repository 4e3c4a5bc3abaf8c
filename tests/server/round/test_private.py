"""A run's guard: what a release costs, when it is free, and that none leaves before it is paid."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import server.round.private
from common.config import Config, changed
from common.errors import ConfigError, DamagedError
from common.privacy.factorization import coefficients, sensitivity
from common.privacy.gaussian import gaussian_sigma
from common.privacy.integers import RESOLUTION
from common.privacy.ledger import Entry, Ledger
from common.types import IntArray
from server.round.private import LEDGER, SECRET, BudgetSpent, Guard
from server.round.private_checks import check_noise, check_population
from server.round.private_terms import _warn_of_few, decide
from server.strategies.private import DIGEST_BYTES, Digests, Released

CLIENTS, EXAMPLES, NORM, SIZE = 60, 9, 4.0, 400
NONE = np.zeros((0, DIGEST_BYTES), np.uint8)


def configured(**privacy: Any) -> Config:
    train = {key: privacy.pop(key) for key in ("rounds", "clients-per-round") if key in privacy}
    return Config.model_validate({"privacy": {"epsilon": 4.0, **privacy}, "train": train})


def guard(folder: Path, config: Config | None = None, *, simulated: bool = False) -> Guard:
    config = config or configured()
    decided = decide(config, CLIENTS, EXAMPLES, NORM)
    return Guard(config, decided, folder, simulated=simulated)


def sums(number: int = 1, size: int = SIZE) -> IntArray:
    return np.random.default_rng(number).integers(-RESOLUTION, RESOLUTION, size)


def released(
    keeper: Guard, number: int = 1, total: IntArray | None = None, earlier: Digests = NONE
) -> Released:
    return keeper.release(number, sums(number) if total is None else total, 0.5, earlier)


def test_the_same_sums_get_the_same_noise_at_no_further_charge(tmp_path: Path) -> None:
    first = released(guard(tmp_path))
    spent = guard(tmp_path).spent
    for _ in range(3):
        again = guard(tmp_path)  # as after a kill: another process, the same folder
        assert (released(again).noisy == first.noisy).all()
        assert again.spent == spent > 0
    assert len(Ledger(tmp_path / LEDGER).entries) == 1


def test_other_sums_get_other_noise_and_are_charged_again(tmp_path: Path) -> None:
    keeper, total = guard(tmp_path), sums()
    other = total.copy()
    other[3] += 1  # the least that another set of clients can do
    noises = [released(keeper, 1, t).noisy - t for t in (total, other)]
    scale = keeper.decided.noise * RESOLUTION
    # Independent: their difference has twice the variance, and is not that of the sums.
    assert np.std(noises[0] - noises[1]) == pytest.approx(2**0.5 * scale, rel=0.15)
    first, second = Ledger(tmp_path / LEDGER).entries
    assert (first.round, first.secret) == (second.round, second.secret)
    assert first.digest != second.digest
    assert keeper.spent > _epsilon([first])


def _epsilon(entries: list[Entry]) -> float:
    return server.round.private.spent(tuple(entries), 1e-5)


def test_all_planned_rounds_spend_the_budget_and_no_more(tmp_path: Path) -> None:
    keeper = guard(tmp_path, configured(rounds=7))
    assert keeper.spent == 0
    for number in range(1, 8):
        assert keeper.allows(number)
        assert released(keeper, number).last == (number == 7)
    assert keeper.spent == pytest.approx(4.0, abs=1e-6)
    # Exact and instant: z = sigma sqrt(T).
    assert keeper.decided.multiplier == pytest.approx(gaussian_sigma(4.0, 1e-5) * 7**0.5)
    assert not keeper.allows(8)
    with pytest.raises(BudgetSpent, match=r"epsilon 4 of 4"):
        released(keeper, 7, sums(99))
    assert len(Ledger(tmp_path / LEDGER).entries) == 7
    assert released(keeper, 7).last  # what was released may be again, however late


def test_a_round_done_twice_with_other_sums_leaves_the_last_round_nothing(tmp_path: Path) -> None:
    keeper = guard(tmp_path, configured(rounds=4))
    lasts = []
    for number, total in ((1, sums(1)), (2, sums(2)), (2, sums(-2 % 99)), (3, sums(3))):
        lasts.append(released(keeper, number, total).last)
    assert lasts == [False, False, False, True]
    assert not keeper.allows(4)
    # An older checkpoint: its rounds are free again, and none of them is the last.
    assert keeper.allows(2)
    assert not released(keeper, 2).last


def test_nothing_is_released_unless_the_charge_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, noise = os.fsync, server.round.private.gaussian_integers

    def synced(file: int) -> None:
        text = (tmp_path / LEDGER).read_text() if (tmp_path / LEDGER).exists() else ""
        done.append(f"fsync {text.count(chr(10))}")
        fsync(file)

    def drawn(*args: Any) -> IntArray:
        done.append("noise")
        return noise(*args)

    keeper = guard(tmp_path)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(server.round.private, "gaussian_integers", drawn)
    released(keeper)
    assert "fsync 1" in done
    assert done.index("noise") > done.index("fsync 1")

    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        released(keeper, 2)
    assert done.count("noise") == 1


def test_a_damaged_ledger_stops_the_run(tmp_path: Path) -> None:
    released(guard(tmp_path))
    released(guard(tmp_path), 2)
    file = tmp_path / LEDGER
    lines = file.read_bytes().splitlines(keepends=True)
    for damaged in (b"".join(lines[1:]), file.read_bytes().replace(b'"round": 1', b'"round": 3')):
        file.write_bytes(damaged)
        with pytest.raises(DamagedError):
            released(guard(tmp_path), 3)


def test_a_lost_secret_means_other_noise_which_is_charged(tmp_path: Path) -> None:
    first = released(guard(tmp_path))
    guard(tmp_path).end(3)
    assert (tmp_path / SECRET).exists()  # seven rounds may follow
    guard(tmp_path).end(10)
    assert not (tmp_path / SECRET).exists()
    second = released(guard(tmp_path))
    assert (second.noisy != first.noisy).any()
    names = [entry.secret for entry in Ledger(tmp_path / LEDGER).entries]
    assert len({*names}) == len(names) == 2


def test_a_refused_release_ends_the_secret_whatever_an_earlier_attempt_was(tmp_path: Path) -> None:
    keeper = guard(tmp_path, configured(rounds=3))
    for number in (1, 2, 3):
        released(keeper, number)
    keeper.end(2)
    assert (tmp_path / SECRET).exists()  # the third may be done again
    with pytest.raises(BudgetSpent):
        released(keeper, 3, sums(99))
    keeper.end(2)
    assert not (tmp_path / SECRET).exists()
    assert not guard(tmp_path, configured(rounds=3)).allows(3)


@pytest.mark.parametrize("mechanism", ["everyone", "adaptive", "min-separation"])
def test_the_planned_releases_are_never_a_rounding_above_the_budget(mechanism: str) -> None:
    some = {"clients-per-round": 15} if mechanism == "min-separation" else {}
    kind = {"clip": mechanism} if mechanism == "adaptive" else {"mechanism": mechanism}
    for epsilon in (0.1, 0.73, 1.0, 4.0, 8.0, 30.0):
        for rounds in (1, 2, 3, 7, 10, 50, 333):
            config = configured(**{**kind, **some, "epsilon": epsilon, "rounds": rounds})
            decided = decide(config, CLIENTS, EXAMPLES, NORM)
            separation = decided.separation if some else None
            entries = [
                Entry(number, "0", "0", config.privacy.mechanism, decided.multiplier, CLIENTS,
                      0.5, 1e-5, separation=separation)
                for number in range(1, rounds + 1)
            ]  # fmt: skip
            assert epsilon * (1 - 1e-6) < _epsilon(entries) <= epsilon


def test_whether_a_round_is_allowed_makes_no_secret(tmp_path: Path) -> None:
    keeper = guard(tmp_path)
    assert keeper.allows(1)
    assert not (tmp_path / SECRET).exists()
    released(keeper)
    assert (tmp_path / SECRET).stat().st_mode & 0o777 == 0o600


def test_a_simulation_has_no_secret_and_repeats_itself_in_another_folder(tmp_path: Path) -> None:
    heads = [released(guard(tmp_path / name, simulated=True)).noisy for name in "ab"]
    assert (heads[0] == heads[1]).all()
    assert not list(tmp_path.rglob(SECRET))
    summary = guard(tmp_path / "a", simulated=True).summary()
    assert summary["noise"] == "seed"
    assert "not private" in summary["sentence"]


def test_noise_is_as_large_as_the_ledger_says(tmp_path: Path) -> None:
    for mechanism in ("everyone", "adaptive"):
        clip = "adaptive" if mechanism == "adaptive" else "auto"
        keeper = guard(tmp_path / mechanism, configured(clip=clip))
        size = 2560
        noise = released(keeper, 1, np.zeros(size, np.int64)).noisy / RESOLUTION
        vote = keeper.decided.vote / RESOLUTION
        # One client moves updates by 1 and votes by ``vote``, and both have the same noise.
        multiplier = np.std(noise) / np.hypot(1, vote)
        (entry,) = Ledger(tmp_path / mechanism / LEDGER).entries
        assert multiplier == pytest.approx(entry.multiplier, rel=0.07)  # 5 sigma of 2,560 draws
        assert keeper.decided.noise / np.hypot(1, vote) >= entry.multiplier * (1 - 1e-9)


def test_poisson_cohorts_are_secret_coins_that_a_repeat_tosses_alike(tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting")
    config = configured(mechanism="poisson", rounds=40, **{"clients-per-round": 15})
    keeper = guard(tmp_path, config)
    cohorts = [keeper.chosen(number, range(CLIENTS)) for number in range(1, 41)]
    assert cohorts == [guard(tmp_path, config).chosen(n, range(CLIENTS)) for n in range(1, 41)]
    assert cohorts != [
        guard(tmp_path / "b", config).chosen(n, range(CLIENTS)) for n in range(1, 41)
    ]
    sizes = [len(cohort or ()) for cohort in cohorts]
    assert len({*sizes}) > 5
    assert np.mean(sizes) == pytest.approx(15, abs=5 * (60 * 0.25 * 0.75 / 40) ** 0.5)
    # Who else is there changes nobody's coin.
    assert keeper.chosen(3, range(0, CLIENTS, 2)) == {c for c in cohorts[2] or () if c % 2 == 0}


def test_min_separation_gives_each_client_one_turn_in_b_rounds(tmp_path: Path) -> None:
    config = configured(mechanism="min-separation", rounds=9, **{"clients-per-round": 15})
    keeper = guard(tmp_path, config)
    assert keeper.decided.separation == 4
    turns: dict[int, list[int]] = {client: [] for client in range(CLIENTS)}
    for number in range(1, 10):
        for client in keeper.chosen(number, range(CLIENTS)) or ():
            turns[client].append(number)
    assert all(turns.values())
    assert {b - a for own in turns.values() for a, b in pairwise(own)} == {4}


def test_min_separation_takes_earlier_noise_off_and_spends_the_budget(tmp_path: Path) -> None:
    rounds = 9
    config = configured(mechanism="min-separation", rounds=rounds, **{"clients-per-round": 15})
    keeper = guard(tmp_path, config)
    c = coefficients(4)
    sigma = gaussian_sigma(4.0, 1e-5)
    assert keeper.decided.multiplier == pytest.approx(sigma * sensitivity(c, rounds))
    digests = np.zeros((rounds, DIGEST_BYTES), np.uint8)
    zeros, noises = np.zeros(4000, np.int64), []
    for number in range(1, rounds + 1):
        one = released(keeper, number, zeros, digests)
        noises.append(one.noisy / RESOLUTION)
        assert one.last == (number == rounds)
        digests = digests.copy()
        digests[number - 1] = one.digest
    assert keeper.spent == pytest.approx(4.0, abs=1e-6)
    # C y is white: independent noise of the same size in each round, C with c down its diagonals.
    white = [
        sum(c[j] * noises[t - j] for j in range(min(4, t + 1))) / keeper.decided.multiplier
        for t in range(rounds)
    ]
    covariance = np.cov(np.stack(white))
    np.testing.assert_allclose(covariance, np.eye(rounds), atol=0.1)
    # So that the sum of all noises is smaller than that of independent ones.
    assert np.std(sum(noises)) < 0.75 * keeper.decided.multiplier * rounds**0.5


def test_min_separation_charges_the_same_sums_behind_another_past(tmp_path: Path) -> None:
    config = configured(mechanism="min-separation", rounds=9, **{"clients-per-round": 15})
    keeper, pasts = guard(tmp_path, config), []
    for total in (sums(1), sums(2)):
        digests = np.zeros((9, DIGEST_BYTES), np.uint8)
        digests[0] = released(keeper, 1, total, digests).digest
        pasts.append(digests)
    noises = [released(keeper, 2, sums(3), past).noisy for past in pasts]
    assert (noises[0] != noises[1]).any()
    assert len(Ledger(tmp_path / LEDGER).entries) == 4


def test_clip_and_step_follow_from_public_numbers() -> None:
    decided = decide(configured(), 500, 25, 4.0)
    given = decide(configured(clip=0.2, step=7.0), 500, 25, 4.0)
    assert (given.clip, given.step) == (0.2 / 4.0, 7.0)
    assert 0 < decided.clip < 1 / 4.0
    adaptive = decide(configured(clip="adaptive"), 500, 25, 4.0)
    # Andrew et al., 2021: z^-2 = z_delta^-2 + (2 sigma_b)^-2, with sigma_b = 500 / 20.
    assert adaptive.noise**-2 + (2 * 25.0) ** -2 == pytest.approx(decided.multiplier**-2)
    assert adaptive.vote == pytest.approx(adaptive.noise * RESOLUTION / 50.0, abs=1)


@pytest.mark.parametrize("mechanism", ["everyone", "poisson", "min-separation"])
def test_the_smallest_budget_that_is_taken_has_noise_that_can_be_drawn(
    tmp_path: Path, mechanism: str
) -> None:
    if mechanism == "poisson":
        pytest.importorskip("dp_accounting")
    asked = {} if mechanism == "everyone" else {"clients-per-round": 15}
    least = {"epsilon": 1e-6, "delta": 1e-12, "mechanism": mechanism, "rounds": 40, **asked}
    keeper = guard(tmp_path, configured(**least))
    digests = np.zeros((40, DIGEST_BYTES), np.uint8) if mechanism == "min-separation" else NONE
    noise = (released(keeper, 1, np.zeros(99, np.int64), digests).noisy / RESOLUTION).std()
    assert noise == pytest.approx(keeper.decided.noise, rel=0.4)
    for below in ({"epsilon": 9e-7}, {"delta": 9e-13}):
        with pytest.raises(ValueError, match="privacy"):
            configured(**{**least, **below})


def test_noise_from_the_seed_is_for_simulations_alone() -> None:
    assert check_noise(configured(), simulated=True)
    assert not check_noise(configured(), simulated=False)
    assert not check_noise(configured(noise="secret"), simulated=True)
    with pytest.raises(ConfigError, match="whoever knows the seed"):
        check_noise(configured(noise="seed"), simulated=False)


def test_a_delta_that_gives_a_client_away_is_refused() -> None:
    check_population(configured(delta=0.009), 100)
    with pytest.raises(ConfigError, match=r"privacy.delta=0.01, expected below 0.01"):
        check_population(configured(delta=0.01), 100)


@pytest.mark.parametrize(("clients", "told"), [(215, True), (217, False)])
def test_few_clients_are_told_so(
    clients: int, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    _warn_of_few(changed(Config(), {"privacy": {"epsilon": 4.0}}), clients)  # 200 sigma are 216.2
    assert ("are few for epsilon 4" in caplog.text) == told
