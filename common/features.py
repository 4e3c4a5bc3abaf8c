"""Features of a data set: computed once, kept as uint8 on disk and memory-mapped.

Device path: torch through the backbone, but never torchvision.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from common.backbone.frozen import FrozenBackbone, UInt8Array, quantized_engine
from common.cache import note_use
from common.errors import BackboneError, DataError
from common.files import sha256_file, write_folder
from common.machine import cores
from common.progress import track
from common.readback import own_check
from common.types import IntArray

__all__ = ["ImagesAt", "extract"]

ImagesAt = Callable[[IntArray], UInt8Array]
"""From positions int64 (m,) to images uint8 (m, 3, S, S); called from several threads at once."""

_ARRAY = "features.npy"
_CARD = "card.json"
_PROJECTED = 4096  # rows at a time; z does not depend on it
_log = logging.getLogger("fedhead")


def extract(
    backbone: FrozenBackbone,
    images_at: ImagesAt,
    n: int,
    *,
    content_key: str,
    cache: Path,
    batch_size: int = 32,
) -> UInt8Array:
    """Features of n images: from the cache, or else computed on all cores and cached.

    Projected ones are made of those of the backbone without its projection, which are cached too.

    Args:
        backbone: computes them.
        images_at: gives the images at some positions; called only if features are computed.
        n: how many images there are.
        content_key: a key that changes whenever an image or the order of images changes.
        cache: root of the caches; features lie in ``cache/features/<key>``.
        batch_size: images per step; the features do not depend on it.

    Returns:
        uint8 (n, d), memory-mapped and read-only (a plain array if n is 0).

    Raises:
        DataError: ``images_at`` returned a wrong number of images.
        BackboneError: images have a wrong dtype or size, or the cache cannot be written.
    """
    shape = (n, backbone.spec.num_features)
    if n == 0:
        return np.zeros(shape, np.uint8)  # an empty file cannot be mapped
    key = hashlib.sha256(f"{backbone.fingerprint}\n{content_key}\n{n}".encode()).hexdigest()
    folder = cache / "features" / key
    card: dict[str, object] = {
        "content_key": content_key,
        "fingerprint": backbone.fingerprint,
        "shape": list(shape),
    }
    if folder.exists():
        problem = _problem(folder, card)
        if problem is None:
            note_use(folder)
            return _open(folder)
        _log.warning("cached features %s are not usable: %s: computing again", key[:12], problem)
    if backbone.projection is None:
        batches: Iterable[UInt8Array] = _batches(backbone, images_at, n, batch_size)
    else:
        q = extract(
            backbone.base, images_at, n,
            content_key=content_key, cache=cache, batch_size=batch_size,
        )  # fmt: skip
        batches = map(backbone.projection, np.array_split(q, -(-n // _PROJECTED)))
    try:
        with write_folder(folder) as temporary:
            _write_array(temporary / _ARRAY, shape, batches)
            card["sha256"] = sha256_file(temporary / _ARRAY)
            (temporary / _CARD).write_text(json.dumps(card, sort_keys=True))
            # Opened here: another process that made the same may put its folder in place next.
            computed = _open(temporary)
    except OSError as exc:
        raise BackboneError(
            f"features cannot be kept in {folder.parent}: {exc.strerror or exc}"
        ) from exc
    return computed


def _open(folder: Path) -> UInt8Array:
    mapped: UInt8Array = np.load(folder / _ARRAY, mmap_mode="r", allow_pickle=False)
    return mapped


@own_check("features in the cache")
def _problem(folder: Path, want: Mapping[str, object]) -> str | None:
    """What is wrong with a cache entry; None if nothing is."""
    try:
        card = json.loads((folder / _CARD).read_text())
        sha256 = card.pop("sha256")
        if card != want:
            return "they are of other data or another backbone"
        if sha256_file(folder / _ARRAY) != sha256:
            return "their SHA-256 does not match"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        return f"the entry is incomplete ({type(exc).__name__})"
    return None


def _write_array(path: Path, shape: tuple[int, int], batches: Iterable[UInt8Array]) -> None:
    # Written without a mapping: there, a full disk would be a crash (SIGBUS) instead of an error.
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for batch in batches:
            file.write(np.ascontiguousarray(batch).data)


def _batches(
    backbone: FrozenBackbone, images_at: ImagesAt, n: int, batch_size: int
) -> Iterator[UInt8Array]:
    def compute(start: int) -> UInt8Array:
        index = np.arange(start, min(start + batch_size, n))
        images = images_at(index)
        if len(images) != len(index):
            raise DataError(f"asked for {len(index)} images, but got {len(images)}")
        return backbone.features(images)

    starts = range(0, n, batch_size)
    # One block around all threads, because the engine is a setting of the whole process.
    with quantized_engine(backbone.spec.engine):
        pool = ThreadPoolExecutor(cores())
        try:
            yield from track(pool.map(compute, starts), "Computing features", len(starts))
        finally:
            pool.shutdown(cancel_futures=True)
