"""Noise is as large as it says, comes back only for the same sums, and hides one client."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import math
import struct
from statistics import NormalDist

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from common.privacy.integers import RESOLUTION, clipped, offset_sum, with_offset
from common.privacy.noise import (
    NoiseKey,
    coins,
    digest,
    gaussian_integers,
    gaussians,
    seed_secret,
)
from common.statistics import exact_sum

SECRET = bytes(range(32))
SUMS = np.array([1, -2, 3])
DIGEST = digest(SECRET, 3, SUMS)


def noise(
    secret: bytes = SECRET,
    round_number: int = 3,
    named: bytes = DIGEST,
    size: int = 2560,
    scale: float = 2.0 * RESOLUTION,
) -> np.ndarray:
    return gaussian_integers(secret, round_number, named, size, scale)


def test_its_bytes_are_pinned() -> None:
    # From RFC 5869, and AES on each counter by itself, without the library's HKDF and CTR mode.
    info = b"fedhead noise v1" + b"sums".ljust(16, b"\0") + struct.pack("<q", 3) + DIGEST
    prk = hmac.digest(bytes(32), SECRET, "sha256")
    key = hmac.digest(prk, info + struct.pack("<d", 1e6) + b"\1", "sha256")
    aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    pairs = [struct.unpack("<2Q", aes.update(i.to_bytes(16, "big"))) for i in range(6)]
    want = [
        round(1e6 * math.sqrt(-2 * math.log1p(-(a >> 11) / 2**53)) * math.cos(b / 2**63 * math.pi))
        for a, b in pairs
    ]
    assert want == [404686, -1230585, -937212, -606606, -1276024, -1684782]
    got = gaussian_integers(SECRET, 3, DIGEST, 6, 1e6)
    assert got.dtype == np.int64
    assert got.tolist() == want


def test_the_digest_is_pinned_and_names_the_sums_alone() -> None:
    head = b"fedhead sums v1" + struct.pack("<q", 3)
    text = head + struct.pack("<qq", 1, 3) + struct.pack("<3q", 1, -2, 3)
    assert hmac.digest(SECRET, text, "sha256") == DIGEST
    assert digest(SECRET, 3, np.array([1, -2, 3], np.int32)) == DIGEST
    assert digest(SECRET, 3, np.array([1, 0, -2, 0, 3])[::2]) == DIGEST
    others = [
        digest(bytes(32), 3, SUMS),
        digest(SECRET, 4, SUMS),
        digest(SECRET, 3, SUMS + 1),
        digest(SECRET, 3, SUMS[None]),
        digest(SECRET, 3, SUMS[:2]),
        digest(SECRET, 3, SUMS[:2], SUMS[2:]),
        digest(SECRET, 3, SUMS, SUMS[:0]),
        digest(SECRET, 3),
    ]
    assert len({DIGEST, *others}) == len(others) + 1


def test_one_release_has_the_variance_that_it_says() -> None:
    drawn = noise() / (2.0 * RESOLUTION)
    assert abs(drawn.var() - 1) < 0.07
    # Five standard deviations of each release's own, and of all together; 10 % short is far out.
    many = np.stack([noise(round_number=t) for t in range(100)]) / (2.0 * RESOLUTION)
    assert (np.abs(many.std(1) - 1) < 5 / math.sqrt(2 * 2560)).all()
    assert abs(many.var() - 1) < 5 * math.sqrt(2 / many.size)
    assert abs(many.mean()) < 5 / math.sqrt(many.size)


def test_it_is_normal_up_to_its_tails() -> None:
    drawn = gaussians(SECRET, 1, DIGEST, 2_000_000, 1.0)
    edges = np.linspace(-4, 4, 33)
    below = np.array([math.erfc(-edge / math.sqrt(2)) / 2 for edge in edges])
    expected = np.diff(np.concatenate([[0], below, [1]])) * drawn.size
    counts = np.histogram(drawn, np.concatenate([[-np.inf], edges, [np.inf]]))[0]
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert chi2 < 33 + 5 * math.sqrt(2 * 33)
    # No other moment or neighbour knows anything of it either.
    assert abs((drawn**3).mean()) < 5 * math.sqrt(15 / drawn.size)
    for step in (1, 2, 5):
        assert abs((drawn[step:] * drawn[:-step]).mean()) < 5 / math.sqrt(drawn.size)


def test_the_same_arguments_give_the_same_bytes_and_any_other_gives_fresh_noise() -> None:
    assert noise().tobytes() == noise().tobytes()
    assert noise(size=100).tolist() == noise()[:100].tolist()
    scaled = noise(scale=3.0 * RESOLUTION) / 3  # or two releases of one sum would give it away
    others = [
        noise(secret=seed_secret(1)),
        noise(round_number=4),
        noise(round_number=-3),
        noise(named=digest(SECRET, 3, SUMS + 1)),
        scaled * 2,
    ]
    for a, b in itertools.combinations([noise(), *others], 2):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(2560)
        assert not (a == b).any() or (a == b).sum() < 5


def test_no_number_repeats_over_rounds_and_digests() -> None:
    drawn = [
        gaussians(SECRET, t, digest(SECRET, t, SUMS + k), 2560, 1.0)
        for t in range(10)
        for k in range(10)
    ]
    # 53-bit draws: among 256,000 of them a repeat has a chance of 4e-6.
    assert np.unique(np.stack(drawn)).size == 100 * 2560


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, 2.0**49])
def test_scales_without_meaning_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=f"the noise's scale is {bad}, expected 0 to 2\\^48"):
        gaussian_integers(SECRET, 1, DIGEST, 2, bad)
    assert gaussian_integers(SECRET, 1, DIGEST, 3, 0.0).tolist() == [0, 0, 0]
    assert gaussian_integers(SECRET, 1, DIGEST, 0, 1.0).shape == (0,)


def test_coins_are_fair_hidden_and_the_same_for_a_round() -> None:
    for rate in (0.0, 0.01, 0.2, 0.5, 1.0):
        drawn = np.stack([coins(SECRET, t, np.arange(1000), rate) for t in range(200)])
        slack = 5 * math.sqrt(rate * (1 - rate) / drawn.size)
        assert abs(drawn.mean() - rate) <= slack
        assert (np.abs(drawn.mean(0) - rate) <= slack * math.sqrt(1000)).all()
    # Each client's coins are its own: two clients are together as often as chance has it.
    together = np.stack([coins(SECRET, t, np.array([1, 2**62]), 0.5) for t in range(4000)]).all(1)
    assert abs(together.mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 4000)
    some = np.arange(50)
    assert coins(SECRET, 7, some, 0.3).tolist() == coins(SECRET, 7, some, 0.3).tolist()
    assert coins(SECRET, 7, some[9:], 0.3).tolist() == coins(SECRET, 7, some, 0.3)[9:].tolist()
    assert coins(SECRET, 7, some, 0.3).tolist() != coins(SECRET, 8, some, 0.3).tolist()
    assert coins(SECRET, 7, some, 0.3).tolist() != coins(seed_secret(1), 7, some, 0.3).tolist()
    for bad in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="the rate of taking part is"):
            coins(SECRET, 1, some, bad)


def test_a_key_shows_its_name_and_never_its_secret() -> None:
    key = NoiseKey(SECRET)
    assert key.name == hashlib.sha256(SECRET).hexdigest()[:16]
    assert repr(key) == str(key) == "NoiseKey()"
    assert NoiseKey(seed_secret(0)).name != NoiseKey(seed_secret(1)).name
    with pytest.raises(ValueError, match="secret has 31 bytes, expected 32"):
        NoiseKey(bytes(31))


def released(secret: bytes, updates: list[np.ndarray], scale: float) -> np.ndarray:
    """What leaves the server, and nothing more."""
    start = np.zeros(updates[0].size, np.uint64)
    sums = offset_sum(exact_sum(start, np.stack(list(map(with_offset, updates)))), len(updates))
    return sums + gaussian_integers(secret, 1, digest(secret, 1, sums), sums.size, scale)


def attacked(multiplier: float, pairs: int = 10_000) -> np.ndarray:
    """What the best attack on one release sees, (pairs, 2): without and with the canary.

    The attacker knows everything but whether the canary took part. The likelihood ratio of two
    Gaussians is monotone in the release's part along the canary.
    """
    generator = np.random.default_rng(7)
    others = [clipped(generator.standard_normal(64) * 10.0**k, 1.0) for k in (-2, 0, 2)]
    canary = clipped(np.r_[1e9, np.zeros(63)], 1.0)
    assert int((canary**2).sum()) == RESOLUTION**2
    base = sum(others)
    scale = multiplier * RESOLUTION
    return np.array(
        [
            [
                float((released(seed_secret(2 * i + there), updates, scale) - base) @ canary)
                for there, updates in enumerate((others, [*others, canary]))
            ]
            for i in range(pairs)
        ]
    )


def holds(parts: np.ndarray, mu: float) -> bool:
    """Whether an attack tells the two apart just as well as two normals mu apart.

    The distance of the means in standard deviations, and at three rates of false alarms the rate
    of hits: Dong, Roth, Su, arXiv 1905.02383, definition 2.6.
    """
    normal = NormalDist()
    found = np.diff(parts.mean(0))[0] / math.sqrt(parts.var(0).mean())
    fits = [abs(found - mu) < 0.05]
    for false_alarms in (0.5, 0.1, 0.01):
        hits = float((parts[:, 1] > np.quantile(parts[:, 0], 1 - false_alarms)).mean())
        expected = normal.cdf(normal.inv_cdf(false_alarms) + mu)
        # The threshold is uncertain as well as the count of hits.
        slope = normal.pdf(normal.inv_cdf(expected)) / normal.pdf(normal.inv_cdf(false_alarms))
        variance = expected * (1 - expected) + slope**2 * false_alarms * (1 - false_alarms)
        fits.append(abs(hits - expected) < 4 * math.sqrt(variance / len(parts)))
    return all(fits)


@pytest.mark.parametrize("multiplier", [pytest.param(0.7, marks=pytest.mark.wide), 1.0])
def test_an_audit_finds_the_promised_privacy_and_notices_noise_that_is_a_tenth_short(
    multiplier: float,
) -> None:
    assert holds(attacked(multiplier), 1 / multiplier)
    assert not holds(attacked(0.9 * multiplier), 1 / multiplier)
