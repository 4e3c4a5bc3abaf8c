"""Find the images of a data set that can be read: decode each once and keep none."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from common.datasets.base import EncodedImages, Readable
from common.errors import DataError
from common.machine import cores
from common.progress import track

__all__ = ["verify"]

logger = logging.getLogger("fedhead")

_BLOCK = 4096  # files at a time; bounds the thread pool's queue


def verify(
    images: EncodedImages, *, name: str, strict: bool, groups: Sequence[str] | None = None
) -> Readable:
    """Decode every image once, on all cores, and keep none.

    Args:
        images: n images.
        name: the data set's name, for errors.
        strict: whether a broken image is an error.
        groups: for each image, words for the group that must keep a readable image, such as its
            class; None: all images are one group.

    Raises:
        DataError: ``strict`` and an image is broken, or all images of a group are broken.
    """
    kept: list[int] = []
    skipped: dict[int, str] = {}
    digest = hashlib.sha256()
    for i, result in enumerate(track(_checks(images), f"checking {name}", len(images))):
        if isinstance(result, bytes):
            kept.append(i)
            digest.update(result)
        elif strict:
            raise result
        else:
            skipped[i] = str(result)
    reasons = tuple(skipped.values())
    if skipped and not kept:
        raise DataError(f"{name}: none of {len(images)} images can be read ({reasons[0]})")
    if groups:
        _refuse_emptied(groups, kept, skipped)
    if skipped:
        logger.warning(
            "%s: skipped %d of %d images that cannot be read: %s%s",
            name, len(skipped), len(images), "; ".join(reasons[:5]),
            "; ..." if len(skipped) > 5 else "",
        )  # fmt: skip
    positions = np.array(kept, np.int64)
    return Readable(images.keep(positions), positions, digest.hexdigest(), reasons)


def _refuse_emptied(groups: Sequence[str], kept: Sequence[int], skipped: Mapping[int, str]) -> None:
    left = {groups[i] for i in kept}
    for i, reason in skipped.items():
        if groups[i] not in left:
            count = sum(group == groups[i] for group in groups)
            raise DataError(f"{groups[i]}: none of its {count} images can be read ({reason})")


def _checks(images: EncodedImages) -> Iterable[bytes | DataError]:
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(images), _BLOCK):
            yield from pool.map(images.check, range(start, min(start + _BLOCK, len(images))))
