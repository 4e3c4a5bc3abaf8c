"""The compiled phone, and images for it."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from common.identity import client_of_phone
from common.partition import local_split
from common.types import FeatureSet
from tests.client.phone.conftest import NAME
from tests.client.phone.kotlin.building import (
    ANDROID,
    COMPILER,
    SOURCES,
    kotlin,
    need_compiler,
    write_stubs,
)

if TYPE_CHECKING:
    from server.export.trained import TrainedModel


@pytest.fixture(scope="session")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The protocol and the plain trainer, compiled without any Android library."""
    need_compiler()
    jar = tmp_path_factory.mktemp("kotlin") / "core.jar"
    programs = Path(__file__).parent.glob("*.kt")
    done = kotlin("-d", jar, ANDROID / "core" / SOURCES, ANDROID / "jvm" / SOURCES, *programs)
    assert done.returncode == 0, done.stderr
    return jar


@pytest.fixture
def stubs(tmp_path: Path) -> Callable[[Collection[str]], Path]:
    """Writes the stand-ins, all but some lines."""
    return lambda without=(): write_stubs(tmp_path / "stubs", without=without)


@pytest.fixture
def java(core: Path) -> Callable[..., list[str]]:
    """A command that runs a class."""

    def command(main: str, *arguments: object) -> list[str]:
        path = f"{core}:{COMPILER / 'kotlin-stdlib.jar'}"
        flags = ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        return ["java", *flags, "-cp", path, main, *map(str, arguments)]

    return command


@dataclass(frozen=True)
class Owned:
    """Images on a phone.

    Attributes:
        file: for the program, with their features.
        train: the examples of the train part, in the round's order.
        test: those of the test part.
    """

    file: Path
    train: FeatureSet
    test: FeatureSet


def owned(trained: TrainedModel, file: Path, per_class: int, seed: int = 7) -> Owned:
    """Write some digits for the program; by class, then by the SHA-256 of their pixels."""
    places: list[int] = []
    for label in range(10):
        mine = np.flatnonzero(trained.labels == label)[:per_class].tolist()
        places += sorted(mine, key=lambda i: hashlib.sha256(trained.images[i].tobytes()).digest())
    q = trained.backbone.features(trained.images[places])
    labels = trained.labels[places]
    lines = [
        f"{labels[i]} {trained.images[place].tobytes().hex()} {q[i].tobytes().hex()}"
        for i, place in enumerate(places)
    ]
    # The program adds them in another order.
    file.write_text("\n".join([str(trained.images.shape[-1]), *lines[::-1]]))
    backbone = trained.backbone
    features = FeatureSet(q, labels, backbone.affine, backbone.fingerprint)
    train, test = local_split(
        np.arange(len(labels)), labels, client=client_of_phone(NAME), test_fraction=0.25, seed=seed
    )
    return Owned(file, features.select(train), features.select(test))


@pytest.fixture
def visit(java: Callable[..., list[str]], folder: Path) -> Callable[..., str]:
    """Lets the program visit the gateway; gives what it says."""

    def call(images: Owned, visits: int = 1) -> str:
        command = java("dev.fedhead.jvm.MainKt", folder, images.file, visits)
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


@dataclass(frozen=True)
class Updated:
    """What the program says of a model.

    Attributes:
        model: the file to load; None if there is none.
        is_new: whether it was put there now.
        problem: why it is not the newest; empty if it is.
    """

    model: Path | None
    is_new: bool
    problem: str


MODEL = "model.pte"


@pytest.fixture
def fetch(java: Callable[..., list[str]]) -> Callable[..., Updated]:
    """Lets the program of a phone's folder fetch a model."""

    def call(folder: Path, name: str = MODEL, under: Iterable[str] = ()) -> Updated:
        command = [*under, *java("dev.fedhead.jvm.MainKt", folder, "--model", name)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == bool(done.stderr)
        said, _, path = done.stdout.strip().partition(": ")
        return Updated(Path(path) if path else None, "is new" in said, done.stderr.strip())

    return call


@pytest.fixture
def ask(java: Callable[..., list[str]], tmp_path: Path) -> Callable[[Iterable[str]], list[Any]]:
    """Lets Kotlin answer questions, a line each."""

    def call(questions: Iterable[str]) -> list[np.ndarray]:
        file = tmp_path / "questions"
        file.write_text("\n".join(questions))
        command = java("dev.fedhead.CheckKt", file)
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        return [np.array([int(n) for n in line.split(",") if n], np.int64) for line in lines]

    return call
