"""Does a work again and again, each time killed before another change of a file; prints how often.

A child does it, and SIGKILLs itself before the first, second, third, ... file operation below its
folder. After each kill the parent looks at what is left and finishes the work.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from client.delivery.fetch import fetch
from client.delivery.shelf import Shelf
from client.trust import Trust
from common.delivery.versions import Artifact, known_versions, read_artifact
from common.errors import SignatureError
from common.signing.statement import Signed
from common.signing.trust import TrustedKeys, key_id, read_public_key
from server.delivery.publish import Candidate, publish_version
from simulations.deploy.signing_key import new_key, public_file, read_key, sign
from simulations.deploy.trust import read_keys, write_trusted

CHANGES = {"open", "os.rename", "os.link", "os.symlink", "os.remove", "os.mkdir", "os.rmdir",
           "os.chmod", "os.truncate"}  # fmt: skip
KEY = ec.generate_private_key(ec.SECP256R1())
TRUSTED = TrustedKeys({key_id(KEY.public_key()): KEY.public_key()})
CARD = '{"fingerprint": "' + "f" * 64 + '"}'


def die_before(step: int, folder: Path) -> None:
    """Let this process die before change number ``step`` of a file below the folder."""
    left = step

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event not in CHANGES or not any(str(a).startswith(str(folder)) for a in arguments):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    sys.addaudithook(hook)


def killed_at(step: int, folder: Path, work: Callable[[], object]) -> bool:
    """Do the work in a child that dies before a step; False: it has ended before."""
    child = os.fork()
    if child == 0:
        die_before(step, folder)
        try:
            work()
        except BaseException as exc:
            print(f"step {step}: {exc!r}", file=sys.stderr)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"step {step} failed"
    return os.WIFSIGNALED(status)


def signed(artifact: Artifact) -> Signed:
    now = int(time.time())
    return sign(KEY, artifact.statement("model", "f" * 64, now, now + 9999))


def candidate(folder: Path, number: int) -> Candidate:
    source = folder.parent / f"source-{folder.name}-{number}"
    source.write_bytes(bytes([number % 256]) * 5000)
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    return Candidate(source, folder / "model.bin", "model", CARD, "f" * 64, sha256)


def check_shelf(shelf: Path) -> list[int]:
    """Each version is whole, and vouched for."""
    for version in known_versions(shelf):
        artifact = read_artifact(shelf, version)
        assert not artifact.damage(artifact.path(shelf))
        artifact.check(TRUSTED.verify(artifact.signed, "it"), "model", "f" * 64)
    return known_versions(shelf)


def publish(folder: Path, _variant: int) -> Iterator[Callable[[], object]]:
    first, second = candidate(folder, 1), candidate(folder, 2)
    publish_version(first, lambda _, artifact: signed(artifact))
    yield lambda: publish_version(second, lambda _, artifact: signed(artifact))
    assert check_shelf(second.shelf) in ([1], [1, 2])
    publish_version(second, lambda _, artifact: signed(artifact))
    assert check_shelf(second.shelf) == [1, 2]
    assert {path.name for path in second.shelf.iterdir()} == {"1", "2"}


def renew(folder: Path, _variant: int) -> Iterator[Callable[[], object]]:
    same = candidate(folder, 1)
    publish_version(same, lambda _, artifact: signed(artifact))
    yield lambda: publish_version(same, lambda _, artifact: signed(artifact))
    assert check_shelf(same.shelf) == [1]
    assert not publish_version(same, lambda _, artifact: signed(artifact)).is_new


def new(folder: Path, _variant: int) -> Iterator[Callable[[], object]]:
    path = folder / "signing.key"
    yield lambda: new_key(path, "")
    before = path.read_bytes() if path.exists() else None
    try:
        new_key(path, "")
    except SignatureError:
        assert public_file(path).exists()
    assert before in (None, path.read_bytes())
    assert path.stat().st_mode & 0o777 == 0o600
    assert key_id(read_public_key(public_file(path))) == key_id(read_key(path).public_key())


class Server:
    """Offers a version to a fetch."""

    def __init__(self, number: int) -> None:
        self._data = bytes([number]) * 5000
        sha256 = hashlib.sha256(self._data).hexdigest()
        artifact = Artifact("model.bin", number, 5000, sha256, CARD)
        self._artifact = Artifact("model.bin", number, 5000, sha256, CARD, signed(artifact))

    def latest(self, _name: str) -> Artifact:
        return self._artifact

    def download(self, _artifact: Artifact, offset: int) -> Iterator[bytes]:
        yield self._data[offset:]


def bring(folder: Path, _variant: int) -> Iterator[Callable[[], object]]:
    shelf, trust = Shelf(folder / "models", "model.bin"), Trust(TRUSTED, folder / "accepted")

    def take(number: int) -> int:
        return fetch(Server(number), shelf, keep=2, trust=trust).version  # type: ignore[arg-type]

    assert [take(1), take(2)] == [1, 2]
    yield lambda: take(3)
    current = shelf.current
    assert current in (2, 3)
    assert shelf.model.read_bytes() == bytes([current]) * 5000
    check_shelf(shelf.path)
    with pytest.raises(SignatureError, match="is older than version"):
        take(current - 1)
    assert take(3) == 3
    assert not [path for path in shelf.path.iterdir() if path.suffix in (".part", ".tmp")]


def deploy(folder: Path, variant: int) -> Iterator[Callable[[], object]]:
    files = [folder.parent / f"{number}.key.pub" for number in range(4)]
    for file in files:
        if not file.exists():
            new_key(file.with_suffix(""), "")
    garden = folder / "garden"

    def give(*numbers: int) -> None:
        write_trusted(garden, read_keys([files[number] for number in numbers]))

    (garden / "devices" / "hall").mkdir(parents=True)
    before, after = [((0,), (0, 1)), ((0, 1), (2, 3))][variant]
    give(*before)
    yield lambda: give(*after)
    for part in (garden / "server", garden / "devices" / "hall"):
        assert TrustedKeys.read(part / "trusted").keys  # one or two, or it raises
    give(*after)
    for part in (garden / "server", garden / "devices" / "hall"):
        found = set(TrustedKeys.read(part / "trusted").keys)
        assert found == {key_id(read_public_key(files[number])) for number in after}


def main(name: str, parent: Path) -> None:
    works = {"publish": publish, "renew": renew, "new_key": new, "fetch": bring, "deploy": deploy}
    kills = 0
    for variant in range(2 if name == "deploy" else 1):
        for step in itertools.count():
            folder = parent / f"{variant}-{step}"
            folder.mkdir()
            around = works[name](folder, variant)
            killed = killed_at(step, folder, next(around))
            assert next(around, None) is None  # what is left is as it must be
            if not killed:
                break
            kills += 1
    print(kills)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
