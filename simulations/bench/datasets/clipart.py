"""Makes the data set ``clipart``: drawings of the Open Clip Art Library, each with its author.

``make clipart`` runs it once; it downloads 131 MB. The drawings come from Debian's package
openclipart-png 0.18 and are dedicated to the public domain by their authors, who are named in the
files. Folders of the package become classes. Left out are series, which are icon themes and drawn
stars, and signs and symbols other than flags, which have nothing in common. Drawings of one author
that look alike, or whose names differ in their running number alone, are on one side of the split.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
from PIL import Image

from common.datasets.made import CLIPART, made_folder
from common.errors import DataError
from common.files import write_folder
from common.images import decode_bytes
from simulations.bench.datasets.debian import download, package_files
from simulations.bench.datasets.near import fingerprint, near_groups, split_groups

__all__ = ["build", "drawings", "main"]

_FILE = "openclipart-png_0.18+dfsg-19_all.deb"
_URLS = (f"https://deb.debian.org/debian/pool/main/o/openclipart/{_FILE}",)
_SHA256 = "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02"
_ROOT = PurePosixPath("usr/share/openclipart/png")
_CLASSES = (
    "animals", "buildings", "computer", "education", "electronics", "flags", "food", "geography",
    "office", "people", "plants", "recreation", "shapes", "tools", "transportation",
)  # fmt: skip
_FLAGS = ("signs_and_symbols", "flags")
_SERIES = frozenset({"icons", "stars"})
_SIDE = 256  # pixels, above the input size of every backbone in use
_MOST_PIXELS = 20_000_000  # a few drawings are posters of hundreds of megapixels
_TEST_FRACTION = 0.2
_SEED = 0
_MOST_BITS = 6  # of 128 that may differ between near-duplicates
_SAME_AUTHOR = {
    "A.J. Ashton": "AJ Ashton",
    "Andrew Fitzsimon": "Andy Fitzsimon",
    "Francesco Rollandin": "Architetto Francesco Rollandin",
    "Rollandin Francesco": "Architetto Francesco Rollandin",
}


@dataclass(frozen=True)
class Drawing:
    """One drawing of the package.

    Attributes:
        kind: its class.
        name: its file's path below the class, with "-" between folders; unique in the class.
        author: as its file says; empty if it does not.
        pixels: uint8 (256, 256, 3).
    """

    kind: str
    name: str
    author: str
    pixels: npt.NDArray[np.uint8]

    @property
    def stem(self) -> str:
        """The name without running number and suffix."""
        return re.sub(r"[\d_.-]*r?$", "", self.name.removesuffix(".png"))


def author_of(data: bytes) -> str:
    """The author that a PNG file names, in one spelling.

    UTF-8 that the file declares as Latin-1 is mended, and addresses behind the name are left out.
    """
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        name = str(image.info.get("Author", ""))
    with suppress(UnicodeError):
        name = name.encode("latin-1").decode()
    name = " ".join(re.sub(r"[(\[].*", "", name).split()) or " ".join(name.split())
    return _SAME_AUTHOR.get(name, name)


def drawings(package: Path) -> Iterator[Drawing]:
    """The package's drawings of our classes, as read from it; posters are left out."""
    for path, content in package_files(package):
        if path.suffix != ".png" or not path.is_relative_to(_ROOT):
            continue
        kind, *inner = path.relative_to(_ROOT).parts
        if (kind, *inner[:1]) == _FLAGS:
            kind, *inner = inner
        if kind not in _CLASSES or _SERIES & set(inner):
            continue
        data = content.read()
        width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
        if width * height > _MOST_PIXELS:
            continue
        pixels = decode_bytes(data, _SIDE, name=str(path)).transpose(1, 2, 0)
        yield Drawing(kind, "-".join(inner), author_of(data), np.ascontiguousarray(pixels))


def build(package: Path, folder: Path) -> Mapping[str, int]:
    """Write the data set: a folder of images for each class, and ``labels.csv`` beside them.

    The table's columns are file, label, author and split. The same package gives the same bytes.

    Args:
        package: the .deb.
        folder: where the data set goes; one that is there is replaced.

    Returns:
        Number of images, authors, near-duplicates and test images, for a line to the user.
    """
    found = sorted(drawings(package), key=lambda drawing: (drawing.kind, drawing.name))
    if not found:
        raise DataError(f"{package}: no drawings in {_ROOT}")
    prints = np.stack([fingerprint(Image.fromarray(drawing.pixels)) for drawing in found])
    authors = [drawing.author for drawing in found]
    groups = near_groups(prints, authors, [drawing.stem for drawing in found], most=_MOST_BITS)
    labels = np.array([_CLASSES.index(drawing.kind) for drawing in found])
    test = frozenset(split_groups(labels, groups, _TEST_FRACTION, _SEED).tolist())
    with write_folder(folder) as temporary:
        _write(temporary, found, test)
    return {
        "images": len(found),
        "authors": len(set(authors) - {""}),
        "near-duplicates": len(found) - len(np.unique(groups)),
        "for the test": len(test),
    }


def _write(folder: Path, found: Sequence[Drawing], test: Collection[int]) -> None:
    lines = [("file", "label", "author", "split")]
    for i, drawing in enumerate(found):
        file = f"{drawing.kind}/{drawing.name}"
        (folder / drawing.kind).mkdir(exist_ok=True)
        Image.fromarray(drawing.pixels).save(folder / file)
        lines.append((file, drawing.kind, drawing.author, "test" if i in test else "train"))
    with (folder / CLIPART.table).open("w", encoding="utf-8", newline="") as table:
        csv.writer(table, lineterminator="\n").writerows(lines)


def main() -> None:
    """Download the package and build the data set where ``data.source = "clipart"`` looks."""
    folder = made_folder(CLIPART)
    folder.parent.mkdir(parents=True, exist_ok=True)
    package = folder.parent / _FILE
    print(f"Downloading {_FILE} (131 MB) into {package.parent}, unless it is there.")
    download(_URLS, _SHA256, package)
    counts = build(package, folder)
    print(f"{folder}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items()))
    package.unlink()


if __name__ == "__main__":
    main()
