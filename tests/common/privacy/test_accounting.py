"""The price of sampled clients: formulas of one round, another library, and Renyi's bound."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mpmath import mp, mpf

from common.errors import MissingExtraError
from common.privacy import accounting
from common.privacy.accounting import (
    fixed_size_epsilon,
    poisson_epsilon,
    poisson_multiplier,
    sampled_epsilon,
)
from common.privacy.gaussian import composed, gaussian_epsilon, gaussian_sigma

DELTA = 1e-5
GOLDEN = (2.0, DELTA, 10 / 50, 120)  # z, delta, rate, rounds: 10 of 50 clients, 120 rounds


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, on the disk and in memory."""
    monkeypatch.setenv("FEDHEAD_CACHE", str(tmp_path))
    forget()
    yield tmp_path / "privacy"
    forget()


def forget() -> None:
    for kept in (poisson_epsilon, poisson_multiplier, accounting._loss_of_round):
        kept.cache_clear()


def exact_delta_of_one_round(z: float, rate: float, epsilon: float) -> mpf:
    """The hockey-stick divergence of (1 - q) N(0) + q N(1) and N(0), both ways, 40 digits.

    The likelihood ratio grows with x, so each is a difference of two tails.
    """
    with mp.workdps(40):
        z, q, e = mpf(z), mpf(rate), mpf(epsilon)

        def at(ratio: mpf) -> mpf | None:
            """Where the ratio 1 - q + q exp((2x - 1) / (2 z^2)) is so large."""
            rest = (ratio - 1 + q) / q
            return z * z * mp.log(rest) + mpf(1) / 2 if rest > 0 else None

        def tail(x: mpf) -> mpf:  # of N(0, z^2), above x
            return mp.ncdf(-x / z)

        x = at(mp.exp(e))
        removed = (1 - q) * tail(x) + q * tail(x - 1) - mp.exp(e) * tail(x)
        added = mpf(0)
        if (x := at(mp.exp(-e))) is not None:
            mixed = (1 - q) * tail(x) + q * tail(x - 1)
            added = (1 - tail(x)) - mp.exp(e) * (1 - mixed)
        return max(removed, added)


@pytest.mark.parametrize("delta", [1e-10, 1e-5, 1e-2])
@pytest.mark.parametrize("rate", [1e-3, 0.2, 0.9])
@pytest.mark.parametrize("z", [0.3, 0.7, 2.0, 100.0])
def test_one_round_is_what_its_formula_says_and_never_less(
    z: float, rate: float, delta: float
) -> None:
    epsilon = sampled_epsilon([(z, rate, 1)], delta)
    assert exact_delta_of_one_round(z, rate, epsilon) <= delta * (1 + 1e-9)
    if epsilon > 0:
        below = exact_delta_of_one_round(z, rate, epsilon * (1 - 1e-3))
        assert below > delta * (1 - 1e-3)


def test_many_rounds_are_the_golden_value() -> None:
    assert abs(poisson_epsilon(*GOLDEN) - 5.55) < 0.02


@pytest.mark.parametrize(
    ("z", "delta", "rate", "rounds"),
    [
        pytest.param(*GOLDEN, marks=pytest.mark.wide),
        pytest.param(1.0, 1e-6, 0.01, 1000, marks=pytest.mark.wide),
        (4.0, DELTA, 0.1, 100),
    ],
)
def test_another_library_finds_the_same(z: float, delta: float, rate: float, rounds: int) -> None:
    from prv_accountant import PoissonSubsampledGaussianMechanism, PRVAccountant

    prv = PoissonSubsampledGaussianMechanism(noise_multiplier=z, sampling_probability=rate)
    accountant = PRVAccountant(
        prvs=prv, max_self_compositions=rounds, eps_error=1e-3, delta_error=delta * 1e-3
    )
    low, estimate, high = accountant.compute_epsilon(delta=delta, num_self_compositions=rounds)
    ours = poisson_epsilon(z, delta, rate, rounds)
    assert low <= ours <= high
    assert abs(ours - estimate) < 1e-3


def test_renyis_bound_is_above_and_the_full_gaussian_too() -> None:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    z, delta, rate, rounds = GOLDEN
    accountant = RdpAccountant()
    accountant.compose(PoissonSampledDpEvent(rate, GaussianDpEvent(z)), rounds)
    bound = accountant.get_epsilon(delta)
    assert abs(bound - 6.06) < 0.01
    assert poisson_epsilon(*GOLDEN) < bound < gaussian_epsilon(composed([z] * rounds), delta)


def test_a_fixed_number_of_clients_costs_far_more() -> None:
    z, delta, share, rounds = GOLDEN
    assert abs(fixed_size_epsilon(z, delta, share, rounds) - 26.6) < 0.1
    # Everybody in every round, one replaced: a sum moves by two clips, which is exact.
    assert fixed_size_epsilon(z, delta, 1.0, 4) == gaussian_epsilon(z / 4, delta)


def test_everybody_in_each_round_is_the_exact_formula() -> None:
    assert poisson_epsilon(8.0, DELTA, 1.0, 16) == gaussian_epsilon(2.0, DELTA)
    assert poisson_multiplier(1.0, DELTA, 1.0, 16) == gaussian_sigma(1.0, DELTA) * 4
    # The loss distributions find nearly the same, from above.
    by_losses = sampled_epsilon([(8.0, 1.0, 16)], DELTA)
    assert gaussian_epsilon(2.0, DELTA) <= by_losses < gaussian_epsilon(2.0, DELTA) * 1.0001


def test_where_a_budget_promises_nothing_sampling_is_counted_as_if_it_hid_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Loss distributions of such rounds would take minutes.
    monkeypatch.setattr(accounting, "_epsilon", None)
    z = poisson_multiplier(1e6, DELTA, 0.25, 10)
    assert z == gaussian_sigma(1e6, DELTA) * math.sqrt(10)
    assert 1e4 < sampled_epsilon([(z, 0.25, 3)], DELTA) < sampled_epsilon([(z, 0.25, 10)], DELTA)
    assert poisson_epsilon(z, DELTA, 0.25, 10) == pytest.approx(1e6)
    assert poisson_epsilon(z, DELTA, 0.25, 10) <= 1e6


def test_rounds_of_several_kinds_add_up() -> None:
    z, delta, rate, rounds = GOLDEN
    halves = [(z, rate, rounds // 2)] * 2
    assert abs(sampled_epsilon(halves, delta) - poisson_epsilon(*GOLDEN)) < 1e-4
    more = sampled_epsilon([(z, rate, rounds), (3.0, 1.0, 1)], delta)
    assert max(poisson_epsilon(*GOLDEN), gaussian_epsilon(3.0, delta)) < more
    assert more < poisson_epsilon(*GOLDEN) + gaussian_epsilon(3.0, delta)
    # Kinds of very different sizes.
    small = sampled_epsilon([(z, rate, rounds), (1e4, 0.1, 5), (0.5, 1e-4, 1)], delta)
    assert poisson_epsilon(*GOLDEN) <= small < poisson_epsilon(*GOLDEN) + 0.05


@pytest.mark.parametrize(
    ("epsilon", "delta", "rate", "rounds"),
    [
        (4.0, DELTA, 0.2, 120),
        (1.0, 1e-6, 0.01, 1000),
        (0.01, DELTA, 0.5, 10),
        (30.0, DELTA, 0.3, 5),
    ],
)
def test_the_multiplier_spends_what_was_asked_for_and_never_more(
    epsilon: float, delta: float, rate: float, rounds: int, folder: Path
) -> None:
    z = poisson_multiplier(epsilon, delta, rate, rounds)
    assert epsilon * (1 - 2e-4) < poisson_epsilon(z, delta, rate, rounds) <= epsilon
    assert rate * gaussian_sigma(epsilon, delta) * math.sqrt(rounds) / 3 < z
    assert z <= gaussian_sigma(epsilon, delta) * math.sqrt(rounds)
    assert poisson_epsilon(z, delta, rate, rounds + rounds // 5) > epsilon


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each evaluation by loss distributions, 1."""
    calls: list[int] = []
    real = accounting._epsilon

    def epsilon(*args: object, **kwargs: object) -> float:
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(accounting, "_epsilon", epsilon)
    return calls


ASKS: list[Callable[[], float]] = [
    lambda: poisson_multiplier(0.1, DELTA, 0.25, 10),
    lambda: poisson_epsilon(30.0, DELTA, 0.25, 10),
    lambda: fixed_size_epsilon(30.0, DELTA, 0.25, 10),
]


@pytest.mark.parametrize("ask", ASKS)
def test_a_figure_is_computed_once_on_a_machine(
    ask: Callable[[], float], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(monkeypatch)
    figure = ask()
    assert calls
    (file,) = folder.iterdir()
    assert file.stem.isalnum()
    assert json.loads(file.read_text())["is"] == figure
    calls.clear()
    forget()
    assert ask() == figure
    assert calls == []


@pytest.mark.parametrize("ask", ASKS)
def test_a_damaged_or_foreign_figure_costs_time_and_nothing_else(
    ask: Callable[[], float], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = ask()
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    values = json.loads(whole)
    del values["checksum"]
    pack = accounting._FIGURE.pack
    calls = counted(monkeypatch)
    for content in (
        b"", whole[:-9], whole.replace(b'"is": ', b'"is": 1'), b"[]",
        pack({**values, "is": 1}), pack({**values, "is": "2"}), pack({**values, "delta": 0.5}),
        pack({**values, "dp-accounting": "0.1"}), pack({"is": 0.1}),
    ):  # fmt: skip
        file.write_bytes(content)
        calls.clear()
        forget()
        assert ask() == figure
        assert calls
        assert file.read_bytes() == whole
    # A cache that cannot be written, too.
    file.unlink()
    folder.rmdir()
    folder.write_text("a file in its place")
    forget()
    assert ask() == figure


@pytest.mark.parametrize("ask", ASKS)
def test_without_the_package_a_line_says_what_to_install(
    ask: Callable[[], float], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(MissingExtraError, match="'dp-accounting': pip install 'fedhead.privacy.'"):
        ask()
    monkeypatch.setattr(accounting, "version", lambda _: 1 / 0)
    assert poisson_epsilon(8.0, DELTA, 1.0, 16) == gaussian_epsilon(2.0, DELTA)  # needs none


@pytest.mark.parametrize("call", [poisson_multiplier, poisson_epsilon, fixed_size_epsilon])
def test_what_has_no_meaning_is_refused_by_its_name(call: Callable[..., float]) -> None:
    for bad in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"^(epsilon|z) is {bad}, expected a finite number"):
            call(bad, DELTA, 0.2, 10)
    for bad in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match=f"^delta is {bad}, expected between 0 and 1"):
            call(1.0, bad, 0.2, 10)
    for bad in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"^rate is {bad}, expected above 0 and at most 1"):
            call(1.0, DELTA, bad, 10)
    with pytest.raises(ValueError, match="^rounds is 0, expected at least 1"):
        call(1.0, DELTA, 0.2, 0)
