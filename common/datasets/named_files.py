"""Files in a folder, found by what the cells of a table call them."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from common.datasets.folder import EXTENSIONS
from common.errors import DataError

__all__ = ["NamedFiles"]


class NamedFiles:
    """The regular files in a folder and below.

    A link counts where it stays within the folder; hidden files do not.

    Attributes:
        count: how many of them are pictures by their suffix.
        links: how many links lead out of the folder, and are not followed.
    """

    def __init__(self, folder: Path) -> None:
        self._by_name: dict[str, list[tuple[PurePosixPath, Path]]] = defaultdict(list)
        self.count = self.links = 0
        root = folder.resolve()
        for file in self._files(root):
            path = PurePosixPath(_composed(file.relative_to(root).as_posix()))
            keys = [path]
            if path.suffix.lower() in EXTENSIONS:
                self.count += 1
                keys.append(path.with_suffix(""))
            for key in keys:
                self._by_name[key.name].append((key, folder / file.relative_to(root)))

    def _files(self, root: Path) -> Iterator[Path]:
        waiting = [root]
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                shown = sorted((e for e in entries if e.name[0] != "."), key=lambda e: e.name)
            for entry in shown:
                path = Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(path)
                elif entry.is_symlink() and not path.resolve().is_relative_to(root):
                    self.links += 1
                elif entry.is_file():
                    yield path

    def find(self, cell: str) -> Path | None:
        """The file of a cell; None if there is none.

        Args:
            cell: a path from the folder, the end of one, or either without a picture's suffix.

        Raises:
            DataError: the cell leads out of the folder, or fits several files.
        """
        path = PurePosixPath(_composed(cell.replace("\\", "/")))
        if path.is_absolute() or PureWindowsPath(cell).drive or ".." in path.parts:
            raise DataError(f"'{cell}' is no path within the table's folder")
        fits = [
            (key, file)
            for key, file in self._by_name.get(path.name, [])
            if key.parts[-len(path.parts) :] == path.parts
        ]
        files = [file for key, file in fits if key == path] or [file for _, file in fits]
        if len(files) > 1:
            raise DataError(f"'{cell}' may be {' or '.join(map(str, sorted(files)[:2]))}")
        return files[0] if files else None


def _composed(text: str) -> str:
    """One form of accents: file systems keep others than editors write."""
    return unicodedata.normalize("NFC", text)
