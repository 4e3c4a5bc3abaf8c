"""Noise over rounds solves a triangular system; no way of taking part moves it further."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from common.privacy.factorization import coefficients, correlated, sensitivity


def matrix(c: tuple[float, ...], rounds: int) -> np.ndarray:
    """C, lower triangular and banded, with c down each column."""
    full = np.zeros((rounds, rounds))
    for k, value in enumerate(c):
        full += np.diag(np.full(max(rounds - k, 0), value), -k) if k < rounds else 0
    return full


def test_the_coefficients_are_those_of_the_square_root() -> None:
    c = coefficients(30)
    # (1 - x)^(-1/2) has C(2k, k) / 4^k, and its square is 1 + x + x^2 + ...
    assert c == pytest.approx([math.comb(2 * k, k) / 4**k for k in range(30)], rel=1e-14)
    root = matrix(c, 30)
    np.testing.assert_allclose(root @ root, np.tril(np.ones((30, 30))), rtol=1e-12)
    assert coefficients(4) == c[:4]
    assert list(c) == sorted(c, reverse=True)


@pytest.mark.parametrize("separation", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("rounds", [1, 2, 7, 20])
def test_correlated_noise_is_the_inverse_of_the_matrix(separation: int, rounds: int) -> None:
    c = coefficients(separation)
    z = np.random.default_rng(0).standard_normal((rounds, 6))
    y = np.linalg.solve(matrix(c, rounds), z)
    for t in range(rounds):
        np.testing.assert_allclose(correlated(iter(z[: t + 1]), c), y[t], rtol=1e-10, atol=1e-12)


def test_without_separation_it_is_plain_noise() -> None:
    z = list(np.random.default_rng(0).standard_normal((5, 3)))
    assert correlated(z, coefficients(1)).tobytes() == z[-1].tobytes()
    assert [sensitivity(coefficients(1), rounds) for rounds in (1, 4, 9)] == [1, 2, 3]
    with pytest.raises(ValueError, match="no noise, expected that of one round or more"):
        correlated([], coefficients(3))


def test_nothing_that_it_is_given_is_changed() -> None:
    z = np.random.default_rng(0).standard_normal((6, 3))
    before = z.copy()
    correlated(z, coefficients(3))[:] = 0
    correlated(z[:1], coefficients(1))
    np.testing.assert_array_equal(z, before)


def ways(rounds: int, separation: int) -> list[tuple[int, ...]]:
    """All sets of rounds that are at least so far apart."""
    return [
        taken
        for count in range(rounds + 1)
        for taken in itertools.combinations(range(rounds), count)
        if all(b - a >= separation for a, b in itertools.pairwise(taken))
    ]


def longest(c: tuple[float, ...], done: list[int], rounds: int, separation: int) -> float:
    """The largest norm of C x over all ways of taking part, for updates of norm 1 up to a sign.

    Args:
        c: coefficients.
        done: the round of each release, in their order: a round stands twice if it was done again.
        rounds: how many.
        separation: between participations.
    """
    full = matrix(c, rounds)
    most = 0.0
    for taken in ways(rounds, separation):
        for signs in itertools.product((1, -1), repeat=len(taken)):
            x = np.zeros(rounds)
            x[list(taken)] = signs
            most = max(most, float(np.linalg.norm((full @ x)[done])))
    return most


@pytest.mark.parametrize(
    ("rounds", "separation"), [*itertools.product((1, 2, 3, 5, 6, 8), (1, 2, 3, 4))]
)
def test_the_sensitivity_is_that_of_the_worst_way_of_taking_part(
    rounds: int, separation: int
) -> None:
    c = coefficients(separation)
    said = sensitivity(c, rounds)
    assert said == pytest.approx(longest(c, [*range(rounds)], rounds, separation), rel=1e-12)
    often = math.ceil(rounds / separation)
    closed = math.sqrt(often) * float(np.linalg.norm(c))
    assert said <= closed * (1 + 1e-12)
    if rounds % separation == 0:
        assert said == pytest.approx(closed, rel=1e-12)


@pytest.mark.parametrize(("rounds", "separation"), [(5, 2), (6, 3), (4, 1), (5, 4)])
def test_rounds_that_are_done_again_are_covered(rounds: int, separation: int) -> None:
    c = coefficients(separation)
    for again in (1, 2):
        said = sensitivity(c, rounds, again)
        found = [
            longest(c, sorted([*range(rounds), *extra]), rounds, separation)
            for extra in itertools.combinations_with_replacement(range(rounds), again)
        ]
        assert max(found) <= said * (1 + 1e-12)
        # Round 1 is one in which the worst client takes part.
        assert max(found) == pytest.approx(said, rel=1e-12)


def test_the_noise_of_a_head_is_smaller_than_plain_noise_at_the_same_privacy() -> None:
    # What it is for. Both noises have mu = 1 over all rounds; the head adds the rounds' noises up.
    rounds, separation = 64, 16
    c = coefficients(separation)
    plain = math.sqrt(rounds / separation) * math.sqrt(rounds)  # who takes part every 16th round
    inverse = np.linalg.inv(matrix(c, rounds))
    head = np.tril(np.ones((rounds, rounds))) @ inverse
    ours = sensitivity(c, rounds) * float(np.linalg.norm(head[-1]))
    assert ours < 0.8 * plain
