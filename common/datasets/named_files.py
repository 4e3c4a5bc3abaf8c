"""Images in a folder, found by the names in a table's cells."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath, PureWindowsPath

from common.datasets.tree import not_read, scan
from common.errors import DataError
from common.files import shown

__all__ = ["NamedFiles"]


class NamedFiles:
    """The images in a table's folder and the folders below it.

    Attributes:
        count: number of images.
        others: words for what else lies there: linked folders, and files of other kinds.
    """

    def __init__(self, table: Path) -> None:
        self._by_name: dict[str, list[tuple[PurePosixPath, Path]]] = defaultdict(list)
        self.count = 0
        root = scan(table.parent)
        root.others -= Counter([table.suffix.lower()])
        for inner in root.below():
            for file in inner.images:
                self.count += 1
                path = PurePosixPath(_composed(file.relative_to(table.parent).as_posix()))
                for key in (path, path.with_suffix("")):
                    self._by_name[key.name].append((key, file))
        self.others = not_read(root)

    def find(self, cell: str) -> Path | None:
        """The file of a cell; None if there is none.

        Args:
            cell: a path from the folder or the end of one, with or without the suffix.

        Raises:
            DataError: the cell leads out of the folder, or fits several files.
        """
        path = PurePosixPath(_composed(cell.replace("\\", "/")))
        if path.is_absolute() or PureWindowsPath(cell).drive or ".." in path.parts:
            raise DataError(f"'{cell}' is not a path within the table's folder")
        fits = [
            (key, file)
            for key, file in self._by_name.get(path.name, [])
            if key.parts[-len(path.parts) :] == path.parts
        ]
        files = [file for key, file in fits if key == path] or [file for _, file in fits]
        if len(files) > 1:
            raise DataError(f"'{cell}' may be {' or '.join(map(shown, sorted(files)[:2]))}")
        return files[0] if files else None

    def with_zeros(self, cell: str) -> Path | None:
        """The only file whose name is the cell's with leading zeros, such as 001.png."""
        stem, _, suffix = cell.partition(".")
        if not (stem.isdecimal() and stem.isascii()):
            return None
        fits = {
            file
            for name, files in self._by_name.items()
            if name.lstrip("0") in (f"{stem}.{suffix}", stem) and name != cell
            for _, file in files
        }
        return fits.pop() if len(fits) == 1 else None


def _composed(text: str) -> str:
    """The text with accents in one form; file systems and editors use different forms."""
    return unicodedata.normalize("NFC", text)
