"""Random streams that every platform can reproduce.

Each draw is splitmix64 over ``(seed, purpose, *keys, index)``. It gives the same integers in numpy
uint64, TorchScript int64, C++ and numba; numpy's and torch's generators cannot do that.
Values are compared as 63-bit non-negative integers, so that signed and unsigned 64-bit
arithmetic order them alike.

Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

__all__ = [
    "Purpose",
    "batch_order",
    "batch_seed",
    "draws",
    "fractions",
    "normal",
    "permutation",
    "seeded_order",
    "smallest",
    "stream_state",
    "stream_states",
    "uniform",
    "words",
]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


class Purpose(IntEnum):
    """What a stream is for; no stream is used for two purposes."""

    COHORT = 1
    BATCH_ORDER = 2
    SPLIT = 3
    CALIBRATION = 4
    LOCAL_SPLIT = 5
    PARTITION = 6
    DISTILLATION = 7
    FOLDS = 8
    DROPOUT = 9
    STRAGGLER = 10
    VALIDATION = 11
    MALICIOUS = 12
    ATTACK_NOISE = 13
    LABEL_NOISE = 14
    STRATEGY = 15
    UPLINK = 16
    DOWNLINK = 17
    TEMPERATURE = 18
    FINE_TUNING = 19
    PROJECTION = 20
    BACKDOOR = 21
    PRIVACY_PLAN = 22


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def stream_state(seed: int, purpose: Purpose, *keys: int) -> int:
    """State of a stream, 64 bits. Further keys can be mixed in from here, in any language."""
    state = 0
    for key in (seed, int(purpose), *keys):
        state = _mix(((state ^ (key & _MASK)) + _GOLDEN) & _MASK)
    return state


def stream_states(state: int, first: npt.NDArray[np.int64], last: int) -> npt.NDArray[np.uint64]:
    """States of many streams whose names begin alike.

    Args:
        state: ``stream_state`` of what their names begin with.
        first: int64 (m,), each stream's next key.
        last: the last key of all of them.

    Returns:
        uint64 (m,).

    >>> begin = stream_state(7, Purpose.UPLINK, 3)
    >>> states = stream_states(begin, np.array([5, 6]), 1)
    >>> int(states[1]) == stream_state(7, Purpose.UPLINK, 3, 6, 1)
    True
    """
    now = np.zeros(1, np.uint64)
    keyed = words(np.uint64(state) ^ first.astype(np.uint64), now)
    return words(keyed ^ np.uint64(last), now)


def draws(
    seed: int, purpose: Purpose, *keys: int, index: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """63-bit draws of one stream at the given positions.

    Args:
        seed: the run's seed.
        purpose: what the stream is for.
        keys: further parts of the stream's name, for example round, client, epoch.
        index: int64 (n,), positions in the stream, in any order.

    Returns:
        int64 (n,), each in [0, 2**63).

    >>> draws(0, Purpose.COHORT, 1, index=np.arange(2)).tolist()
    [9030583759491911620, 2535577634144532877]
    """
    state = np.uint64(stream_state(seed, purpose, *keys))
    return (words(state, index.astype(np.uint64)) >> np.uint64(1)).astype(np.int64)


def words(
    state: npt.NDArray[np.uint64] | np.uint64, index: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint64]:
    """Streams' full 64-bit words at the given positions; the two are broadcast together.

    >>> words(np.uint64(0), np.arange(2, dtype=np.uint64)).tolist()  # as Vigna's splitmix64.c
    [16294208416658607535, 7960286522194355700]
    """
    with np.errstate(over="ignore"):
        z: npt.NDArray[np.uint64] = state + (index + np.uint64(1)) * np.uint64(_GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def fractions(
    state: npt.NDArray[np.uint64] | np.uint64, index: npt.NDArray[np.uint64]
) -> npt.NDArray[np.float64]:
    """Draws in [0, 1), float64: the upper 53 bits of ``words``, so that they are exact."""
    drawn = (words(state, index) >> np.uint64(11)).astype(np.float64)
    return np.asarray(drawn * 2.0**-53, np.float64)


def uniform(
    seed: int, purpose: Purpose, *keys: int, index: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """The same draws as float64 (n,) in [0, 1)."""
    return draws(seed, purpose, *keys, index=index) / float(1 << 63)


def normal(n: int, seed: int, purpose: Purpose, *keys: int) -> npt.NDArray[np.float64]:
    """The stream's first 2n draws as n standard normal ones, float64 (n,), by Box and Muller.

    >>> normal(2, 0, Purpose.ATTACK_NOISE).round(3).tolist()
    [0.076, -0.86]
    """
    u = uniform(seed, purpose, *keys, index=np.arange(2 * n))
    radius = np.sqrt(-2 * np.log1p(-u[:n]))
    return np.asarray(radius * np.cos(2 * np.pi * u[n:]), np.float64)


def smallest(
    ids: npt.NDArray[np.int64], count: int, seed: int, purpose: Purpose, *keys: int
) -> npt.NDArray[np.int64]:
    """The ``count`` ids with the smallest draws, ascending.

    An id's draw depends on that id alone, so a missing id does not change the others' draws.
    """
    order = np.argsort(draws(seed, purpose, *keys, index=ids), kind="stable")
    return np.sort(ids[order[:count]])


def permutation(n: int, seed: int, purpose: Purpose, *keys: int) -> npt.NDArray[np.int64]:
    """A permutation of ``range(n)``: the stable argsort of the stream's first n draws."""
    return np.argsort(draws(seed, purpose, *keys, index=np.arange(n)), kind="stable")


def batch_order(
    n: int, *, seed: int, round_number: int, client: int, epoch: int
) -> npt.NDArray[np.int64]:
    """Order in which a client visits its n examples in one local epoch, int64 (n,)."""
    return permutation(n, seed, Purpose.BATCH_ORDER, round_number, client, epoch)


def batch_seed(*, seed: int, round_number: int, client: int) -> int:
    """The number from which a phone computes the order of ``batch_order``.

    It is the stream's state before the epoch's key, as a signed 64-bit integer, which TorchScript,
    Java and C++ all have.
    """
    state = stream_state(seed, Purpose.BATCH_ORDER, round_number, client)
    return state - (1 << 64) if state >> 63 else state


def seeded_order(state: int, n: int, epoch: int) -> npt.NDArray[np.int64]:
    """The order of ``batch_order``, from what ``batch_seed`` gives.

    Args:
        state: as a signed or an unsigned 64-bit integer.
        n: number of examples.
        epoch: from 0.

    >>> seed = batch_seed(seed=7, round_number=3, client=5)
    >>> seeded_order(seed, 6, 1).tolist()
    [5, 1, 3, 0, 2, 4]
    >>> batch_order(6, seed=7, round_number=3, client=5, epoch=1).tolist()
    [5, 1, 3, 0, 2, 4]
    """
    stream = np.uint64(_mix((((state & _MASK) ^ epoch) + _GOLDEN) & _MASK))
    return np.argsort(words(stream, np.arange(n, dtype=np.uint64)) >> np.uint64(1), kind="stable")
