"""Recognizes the split of a folder, a file or a table's row by common names."""

from __future__ import annotations

import re

__all__ = ["is_filler", "split_of"]

_SPLITS = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("test", "testing", "tests", "tst"), "test"),
    **dict.fromkeys(
        ("val", "valid", "validation", "validate", "dev", "development", "eval", "evaluation",
         "holdout"), "val",
    ),
}  # fmt: skip
_FILLERS = (
    "set", "sets", "data", "dataset", "split", "folder", "image", "images", "img", "imgs", "photos",
    "pics", "pictures", "samples",
)  # fmt: skip
_UNLABELLED = ("unknown", "unlabeled", "unlabelled")


def split_of(name: str) -> str | None:
    """The split that a folder's name says, without filler words and numbers; None if none.

    >>> [split_of(name) for name in ("Training_Set", "valset", "test 2017", "training shoes")]
    ['train', 'val', 'test', None]
    """
    words = [word for word in _words(name) if word not in _FILLERS]
    if len(words) != 1:
        return None
    glued = (words[0].removesuffix(filler) for filler in ("", *_FILLERS))
    return next((_SPLITS[word] for word in glued if word in _SPLITS), None)


def is_filler(name: str) -> bool:
    """Whether a folder's name says only that it holds images.

    >>> [is_filler(name) for name in ("images", "Test_Images", "cats", "01")]
    [True, True, False, False]
    """
    words = _words(name)
    return bool(words) and all(word in (*_FILLERS, *_SPLITS, *_UNLABELLED) for word in words)


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", name.lower())
