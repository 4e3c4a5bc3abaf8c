"""Gaussian noise and hidden coins that a secret decides, so that a round can be done again.

The noise of a release depends on the secret, the round, a digest of the exact sums and the noise's
scale. The same sums get the same noise: whoever sees both releases learns nothing more. Other sums,
or the same at another scale, get noise that has nothing to do with it. With a seed for each round
alone, two attempts at a round would have the same noise, and their difference none.

Where the randomness comes from::

    key = HKDF-SHA256(secret, info = "fedhead noise v1", purpose, round, digest, scale; 32 bytes)
    words = AES-256-CTR(key, counter from 0) of zeros, as little-endian uint64
    u, v = (words >> 11 of the even, the odd places) 2^-53
    g = sqrt(-2 log(1 - u)) cos(2 pi v)                    (Box and Muller, 1958)

The sum is an integer, so adding the rounded noise is rounding the noisy sum: the integers that
leave say no more than exact Gaussian noise would, and no roundings of floats are left in them to
read (Mironov, CCS 2012). 53 bits end at 8.5 standard deviations, which normal draws exceed with
probability 2e-17. The logarithm and cosine are the platform's. Two platforms may differ in their
last bit, which moves a rounded number by 1 for about one in 10^10 of them.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import struct
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

__all__ = [
    "SECRET_BYTES",
    "NoiseKey",
    "coins",
    "digest",
    "gaussian_integers",
    "gaussians",
    "seed_secret",
]

SECRET_BYTES = 32
"""Length of a secret."""

_SUMS, _COINS = b"sums", b"coins"  # what is drawn for; no two purposes share a stream
_MAX_SCALE = 2.0**48  # 8.6 of these still fit the integers that a float64 holds exactly
_NAME_DIGITS = 16


@dataclass(frozen=True)
class NoiseKey:
    """A secret that its own text does not show.

    Attributes:
        secret: ``SECRET_BYTES`` bytes.
    """

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_BYTES:
            raise ValueError(f"secret has {len(self.secret)} bytes, expected {SECRET_BYTES}")

    @property
    def name(self) -> str:
        """What a ledger calls it: 16 hex digits of its SHA-256, which tell nothing about it."""
        return hashlib.sha256(self.secret).hexdigest()[:_NAME_DIGITS]


def digest(secret: bytes, round_number: int, *sums: npt.NDArray[np.integer]) -> bytes:
    """What names the exact sums of a round to whoever has the secret, and to nobody else.

    A plain hash would let an outsider who reads the ledger test guesses of the sums.

    Args:
        secret: the run's secret.
        round_number: the round.
        sums: integer arrays of any shapes, in a fixed order.

    Returns:
        32 bytes: HMAC-SHA256 over the round, and each array's shape and values. It does not depend
        on the width of an array's integers.
    """
    mac = hmac.new(secret, b"fedhead sums v1" + struct.pack("<q", round_number), hashlib.sha256)
    for array in sums:
        mac.update(struct.pack(f"<q{array.ndim}q", array.ndim, *array.shape))
        mac.update(array.astype("<i8").tobytes())
    return mac.digest()


def gaussian_integers(
    secret: bytes,
    round_number: int,
    digest: bytes,
    size: int,
    scale: float,
) -> npt.NDArray[np.int64]:
    """Rounded Gaussian noise, the same whenever all arguments are.

    Args:
        secret: the run's secret.
        round_number: the round.
        digest: ``digest`` of the sums that it is added to.
        size: how many numbers.
        scale: standard deviation, in the sums' units.

    Returns:
        int64 (size,).

    Raises:
        ValueError: the scale is negative, not finite or above 2^48.
    """
    drawn = gaussians(secret, round_number, digest, size, scale)
    return np.rint(drawn).astype(np.int64)


def gaussians(
    secret: bytes,
    round_number: int,
    digest: bytes,
    size: int,
    scale: float,
) -> npt.NDArray[np.float64]:
    """What ``gaussian_integers`` rounds, float64 (size,): for noise that is made of several draws.

    Raises:
        ValueError: as ``gaussian_integers``.
    """
    if not 0 <= scale <= _MAX_SCALE:
        raise ValueError(f"the noise's scale is {scale}, expected 0 to 2^48")
    info = digest + struct.pack("<d", scale)
    u = _uniforms(_key(secret, _SUMS, round_number, info), 2 * size)
    radius = np.sqrt(-2 * np.log1p(-u[::2]))
    return np.asarray(scale * (radius * np.cos(2 * math.pi * u[1::2])), np.float64)


def coins(
    secret: bytes, round_number: int, clients: npt.NDArray[np.int64], rate: float
) -> npt.NDArray[np.bool_]:
    """Which clients take part in a round, each by a coin of its own that only the secret knows.

    A round that is done again has the same cohort: a client's coin depends on its id and not on who
    else is there. It is the first word of AES-256(key, id), with a key as that of noise.

    Args:
        secret: the run's secret.
        round_number: the round.
        clients: int64 (n,), their ids, each once.
        rate: each one's probability.

    Returns:
        bool (n,).

    Raises:
        ValueError: the rate is no probability.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"the rate of taking part is {rate}, expected 0 to 1")
    blocks = np.zeros((len(clients), 2), "<u8")
    blocks[:, 0] = clients.astype(np.uint64)
    key = algorithms.AES(_key(secret, _COINS, round_number, b""))
    cipher = Cipher(key, modes.ECB())  # noqa: S305 - each block is another, and nothing is hidden
    words = np.frombuffer(cipher.encryptor().update(blocks.tobytes()), "<u8")[::2]
    return _fractions(words) < rate


def seed_secret(seed: int) -> bytes:
    """A simulation's secret. Whoever knows the seed can take its noise off.

    >>> seed_secret(0).hex()[:16]
    'e8ce52c38d0d2ed6'
    """
    return hashlib.sha256(f"fedhead simulated secret v1 {seed}".encode()).digest()


def _uniforms(key: bytes, count: int) -> npt.NDArray[np.float64]:
    """``count`` multiples of 2^-53 in [0, 1), float64."""
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return _fractions(np.frombuffer(stream.update(bytes(8 * count)), "<u8"))


def _key(secret: bytes, purpose: bytes, round_number: int, info: bytes) -> bytes:
    named = b"fedhead noise v1" + struct.pack("<16sq", purpose, round_number) + info
    return HKDF(SHA256(), 32, salt=None, info=named).derive(secret)


def _fractions(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    return np.asarray((words >> np.uint64(11)).astype(np.float64) * 2.0**-53, np.float64)
