"""What an exported model says of images in files, folders or memory."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Union

from common.errors import DataError
from common.files import shown

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL.Image import Image

    from common.images import ByteArray
    from server.export.exported import Exported

    OneImage = str | Path | Image | npt.NDArray[np.generic]

__all__ = ["Images", "predictions"]

logger = logging.getLogger("fedhead")

Images = Union["OneImage", "Iterable[OneImage]"]
"""A file, a folder of them, an image that PIL has opened, an array of pixels: uint8 (H, W),
(H, W, 3) or, for n images, (n, H, W, 3); or several of these, such as a list or a glob."""

Row = dict[str, object]

_BATCH = 32  # bounds memory; what is said of an image does not depend on it


def predictions(model: Path, images: Images) -> list[Row]:
    """Class and probability of each image.

    Args:
        model: a file that fedhead exported.
        images: what is to be told apart.

    Returns:
        A row for each image, in order: "image" (its path as given, or its position among
        ``images``), "class" and "probability". Of an image that cannot be read both are None, and
        a warning names it.

    Raises:
        DataError: ``images`` is nothing of the kind.
        ExportError: the model cannot be loaded or does not run.
    """
    from server.export.exported import exported

    rows: list[Row] = []
    items = enumerate(_items(images))
    with exported(model) as loaded:
        for are_paths, group in groupby(items, lambda item: isinstance(item[1], str | Path)):
            rows += (_of_paths if are_paths else _of_pixels)(loaded, [*group])
    return rows


def _items(images: Images) -> list[OneImage]:
    import numpy as np
    from PIL.Image import Image

    if isinstance(images, str | Path | Image):
        return [images]
    if hasattr(images, "__array__"):  # as pandas and torch have it as well
        array = np.asarray(images)
        if array.dtype.kind in "OU" and array.ndim < 2:  # paths, or images one by one
            items: list[OneImage] = array.reshape(-1).tolist()
            return items
        return [*array] if array.ndim == 4 else [array]
    if isinstance(images, Iterable) and not isinstance(images, bytes | Mapping):
        return [*images]
    kind = type(images).__name__
    raise DataError(f"images is a {kind}, expected paths, images of PIL's or arrays of pixels")


def _of_paths(model: Exported, items: Sequence[tuple[int, OneImage]]) -> Iterator[Row]:
    from server.export.predict import find_images, predict

    found = find_images([Path(str(path)).expanduser() for _, path in items])
    for image, answer in zip(found, predict(model, found), strict=True):
        if isinstance(answer, DataError):
            yield _unread(None if isinstance(image, DataError) else str(image), answer)
        else:
            yield _row(shown(answer.path), answer.class_name, answer.probability)


def _of_pixels(model: Exported, items: Sequence[tuple[int, OneImage]]) -> Iterator[Row]:
    import numpy as np

    from server.export.predict import classify

    classes, size = model.card.classes, model.card.input_size
    for start in range(0, len(items), _BATCH):
        part = items[start : start + _BATCH]
        decoded = [_decoded(item, size, name=f"image {number}") for number, item in part]
        pixels = [one for one in decoded if not isinstance(one, DataError)]
        best = iter(classify(model, np.stack(pixels)) if pixels else ())
        for (number, _), one in zip(part, decoded, strict=True):
            if isinstance(one, DataError):
                yield _unread(number, one)
            else:
                k, probability = next(best)
                yield _row(number, classes[k], probability)


def _decoded(item: OneImage, size: int, *, name: str) -> ByteArray | DataError:
    import numpy as np
    from PIL.Image import Image

    from common.images import decode_array, decode_image

    try:
        if isinstance(item, Image):
            return decode_image(item, size, name=name)
        if isinstance(item, np.ndarray):
            return decode_array(item, size, name=name)
    except DataError as exc:
        return exc
    kind = type(item).__name__
    return DataError(f"{name}: a {kind}, expected a path, an image of PIL's or an array of pixels")


def _unread(image: object, error: DataError) -> Row:
    logger.warning("%s", error)
    return _row(image, None, None)


def _row(image: object, name: str | None, probability: float | None) -> Row:
    return {"image": image, "class": name, "probability": probability}
