"""Reads the files of a Debian package, on any system: an ar archive that holds a tar archive."""

from __future__ import annotations

import lzma
import shutil
import tarfile
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from common.errors import DataError
from common.files import sha256_file

__all__ = ["download", "package_files"]

_SIGN = b"!<arch>\n"
_HEADER_BYTES = 60
_DATA = "data.tar.xz"
_TIMEOUT_S = 60


def download(urls: Sequence[str], sha256: str, place: Path) -> None:
    """Fetch a file from the first address that has it, unless it lies there already.

    Args:
        urls: https addresses of the same file, in order of preference.
        sha256: hex SHA-256 that the file must have.
        place: where it goes; its folder exists.

    Raises:
        DataError: no address gives a file with this SHA-256; says what each gave.
    """
    if place.exists() and sha256_file(place) == sha256:
        return
    problems = []
    for url in urls:
        try:
            with (
                urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer,  # noqa: S310 (our own)
                place.open("wb") as file,
            ):
                shutil.copyfileobj(answer, file, 1 << 20)
        except OSError as exc:
            problems.append(f"{url}: {exc}")
            continue
        digest = sha256_file(place)
        if digest == sha256:
            return
        place.unlink()
        problems.append(f"{url}: its SHA-256 is {digest}, expected {sha256}")
    raise DataError(f"{place.name} cannot be had: {'; '.join(problems)}")


def package_files(package: Path) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    """The regular files of a .deb, each with its path in the package; links are left out.

    Raises:
        DataError: not a Debian package with a member data.tar.xz, or a damaged one.
    """
    with package.open("rb") as file:
        _seek_data(file, package)
        try:
            with lzma.open(file) as plain, tarfile.open(fileobj=plain, mode="r|") as archive:
                for member in archive:
                    content = archive.extractfile(member) if member.isreg() else None
                    if content is not None:
                        yield PurePosixPath(member.name), content
        except (lzma.LZMAError, tarfile.TarError, EOFError) as exc:
            raise DataError(f"{package}: a damaged Debian package ({exc})") from exc


def _seek_data(file: IO[bytes], package: Path) -> None:
    """Go to the start of the member data.tar.xz, which is the last one."""
    if file.read(len(_SIGN)) != _SIGN:
        raise DataError(f"{package}: not a Debian package")
    while header := file.read(_HEADER_BYTES):
        name, size = header[:16].decode("ascii", "replace").rstrip(" /"), header[48:58].strip()
        if name == _DATA:
            return
        if not size.isdigit():
            break
        file.seek(int(size) + int(size) % 2, 1)  # members start at even places
    raise DataError(f"{package}: a Debian package without {_DATA}")
