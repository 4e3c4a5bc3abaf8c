"""Finds near-duplicates, so that a split keeps them on one side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from common.seeding import Purpose, draws
from common.types import IntArray

__all__ = ["fingerprint", "near_groups", "split_groups"]

_SIDE = 8


def fingerprint(image: Image.Image) -> npt.NDArray[np.bool_]:
    """Which neighbours grow brighter to the right and downwards, bool (128,).

    It stays nearly the same if an image is scaled or recoloured.
    """
    grey = image.convert("L").resize((_SIDE + 1, _SIDE + 1), Image.Resampling.BOX)
    pixels = np.asarray(grey, np.int64)
    right, down = np.diff(pixels, axis=1)[:-1], np.diff(pixels, axis=0)[:, :-1]
    return np.concatenate([(right > 0).ravel(), (down > 0).ravel()])


def near_groups(
    prints: npt.NDArray[np.bool_], authors: Sequence[str], stems: Sequence[str], *, most: int
) -> IntArray:
    """Put images of one author together that look alike or have the same stem.

    Args:
        prints: bool (n, b), from :func:`fingerprint`.
        authors: n names.
        stems: n file names without running numbers.
        most: up to so many of the b bits may differ.

    Returns:
        int64 (n,): each image's group, named by the position of its first image.
    """
    group = np.arange(len(authors), dtype=np.int64)
    names, stem_names = np.array(authors), np.array(stems)
    for i in range(1, len(authors)):
        before = np.flatnonzero(names[:i] == names[i])
        differing = (prints[before] != prints[i]).sum(axis=1)
        near = before[(differing <= most) | (stem_names[before] == stem_names[i])]
        joined = np.unique(group[near])
        if len(joined):
            group[i] = joined[0]
            group[:i][np.isin(group[:i], joined)] = joined[0]
    return group


def split_groups(labels: IntArray, groups: IntArray, fraction: float, seed: int) -> IntArray:
    """Positions of a test part of whole groups, ascending, with about its share of each class.

    Groups come in a seeded order. One joins the test part as long as none of its classes gets
    more than its share there.

    Args:
        labels: int64 (n,).
        groups: int64 (n,).
        fraction: each class's share, in [0, 1).
        seed: seed of the order.
    """
    classes = int(labels.max()) + 1
    left = np.floor(np.bincount(labels, minlength=classes) * fraction)
    ids = np.unique(groups)
    chosen = []
    for k in np.argsort(draws(seed, Purpose.SPLIT, index=ids), kind="stable"):
        need = np.bincount(labels[groups == ids[k]], minlength=classes)
        if (need <= left).all():
            left = left - need
            chosen.append(ids[k])
    return np.flatnonzero(np.isin(groups, chosen))
