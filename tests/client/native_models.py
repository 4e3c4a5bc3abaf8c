"""Finished models for the C++ phone: published on a gateway, and what the phone says of them."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from common.delivery.versions import Artifact
from common.signing.statement import Signed
from server.delivery.publish import Candidate, artifacts_of
from simulations.deploy.authority import ensure_authority, sign_server, spread
from simulations.deploy.signing_key import sign
from tests.client.gateway.actors import Deployment
from tests.client.native_phones import NativePhone, heard, phone_of

NAME = "model.pte"
FINGERPRINT = "0f" * 32
PART = 256 << 10
LATER = 75  # exit status where another try later may succeed

Sign = Callable[[Candidate, Artifact], Signed]


def by(key: EllipticCurvePrivateKey, **changes: object) -> Sign:
    """Signs a candidate, or what differs from it so; times are seconds from now on."""

    def make(candidate: Candidate, artifact: Artifact) -> Signed:
        now = int(time.time())
        times = {"created": -10, "expires": 9999} | {
            name: changes[name] for name in ("created", "expires") if name in changes
        }
        statement = candidate.statement(artifact, now, now)
        moved = {name: now + int(str(value)) for name, value in times.items()}
        return sign(key, replace(statement, **(changes | moved)))

    return make


@dataclass
class Said:
    """How a phone's call for a model ended.

    Attributes:
        status: of the process.
        line: it printed this.
        error: it told its owner this.
    """

    status: int
    line: str
    error: str

    @property
    def path(self) -> Path:
        return Path(self.line.split("\t")[0])

    @property
    def version(self) -> int:
        return int(self.line.split("\t")[1])

    @property
    def news(self) -> str:
        return self.line.split("\t")[2]


def command_of(phone: NativePhone, name: str = NAME) -> list[str | Path]:
    return [phone.program, phone.path, "--model", name]


def updated(phone: NativePhone, name: str = NAME) -> Said:
    """Ask once for the newest version."""
    done = subprocess.run(command_of(phone, name), capture_output=True, text=True, timeout=120)
    assert done.stdout.count("\n") == (done.returncode == 0), done
    assert done.stderr.count("\n") == (done.returncode != 0), done
    return Said(done.returncode, done.stdout.rstrip("\n"), done.stderr)


def current(phone: NativePhone, name: str = NAME) -> tuple[int, bytes, bytes] | None:
    """What an app finds: version, file and card; None if there is no model."""
    folder = phone.state / "models" / name
    try:
        version = int((folder / "current").read_text())
    except FileNotFoundError:
        return None
    here = folder / str(version)
    return version, (here / name).read_bytes(), (here / "card.json").read_bytes()


def kept(phone: NativePhone, name: str = NAME) -> list[str]:
    """The names in a model's folder, without what is always there."""
    folder = phone.state / "models" / name
    assert not [*(folder / "parts").glob("*")]
    return sorted({path.name for path in folder.iterdir()} - {"current", "lock", "parts"})


def trust(phone: NativePhone, *keys: EllipticCurvePrivateKey) -> None:
    """Give a phone public keys."""
    folder = phone.path / "trusted"
    folder.mkdir()
    for i, key in enumerate(keys):
        path = folder / f"{i}.pub"
        path.write_bytes(
            key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
        path.chmod(0o644)


def killed_at(folder: Path) -> Path:
    """A library that kills a process; see ``kill_at.c``."""
    library = folder / "kill_at.so"
    source = Path(__file__).with_name("kill_at.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def kills(phone: NativePhone, library: Path) -> Iterator[int]:
    """Update a model from the present state, killed before each change of the disk in turn.

    Yields:
        The process's status, 0 only the last time; the state is as it left it.
    """
    start = phone.path / "start"
    shutil.copytree(phone.state, start)
    for number in itertools.count(1):
        shutil.rmtree(phone.state)
        shutil.copytree(start, phone.state)
        environment = os.environ | {"LD_PRELOAD": str(library), "KILL_AT": str(number)}
        done = subprocess.run(command_of(phone), env=environment, stdout=subprocess.DEVNULL)
        assert done.returncode in (0, -signal.SIGKILL)
        yield done.returncode
        if not done.returncode:
            return


@dataclass
class Shop(Deployment):
    """A deployment whose gateway has finished models.

    Attributes:
        published: file and card by version.
    """

    published: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        ensure_authority(self.path)
        sign_server(self.path, ["127.0.0.1"], 2)
        spread(self.path)

    def publish(
        self, seed: int, sign: Sign | None = None, *, size: int = 600_000, card_bytes: int = 0
    ) -> int:
        """Put random bytes up as the next version; returns its number."""
        data = random.Random(seed).randbytes(size)
        facts = {
            "nested": [{"fingerprint": "0" * 64, "text": 'a "quoted" \\ \u00e4'}], "seed": seed,
            "fingerprint": FINGERPRINT, "filling": "x" * card_bytes,
        }  # fmt: skip
        card = json.dumps(facts, ensure_ascii=False)
        version = self.put_up(NAME, data, card, sign)
        self.published[version] = data, card.encode()
        return version

    def whole(self, version: int) -> tuple[int, bytes, bytes]:
        """What an app must find of a version."""
        return (version, *self.published[version])

    def file(self, version: int) -> Path:
        return artifacts_of(self.place.delivery) / NAME / str(version) / NAME

    def phone(self, program: Path, name: str = "anna") -> NativePhone:
        return phone_of(self, name, program)

    def heard(
        self,
        phone: NativePhone,
        monkeypatch: pytest.MonkeyPatch,
        method: str,
        refuse: Callable[[], grpc.StatusCode | None] = lambda: None,
    ) -> list[Any]:
        """As ``native_phones.heard``, for a phone that was there before."""
        before = self.port
        sent = heard(self, monkeypatch, method, refuse)
        toml = phone.path / "phone.toml"
        toml.write_text(toml.read_text().replace(f":{before}", f":{self.port}"))
        return sent
