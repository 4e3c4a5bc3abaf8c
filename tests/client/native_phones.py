"""The C++ phone: built once, put beside a real gateway, and compared with Python."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import executorch
import grpc
import numpy as np
import numpy.typing as npt
import pytest
import torch

from client.gateway.calls import Calls
from common.delivery.tokens import issue_token
from common.identity import client_of_phone
from common.messages import DescribeReply, DescribeRequest, TrainReply, TrainRequest
from common.partition import local_split
from common.phones import file_name
from common.types import ClientPlan, FeatureSet, LocalTraining
from server.export.trained import TrainedModel
from simulations.deploy.authority import ensure_authority, sign_server, spread
from tests.client.gateway.actors import RUN, Deployment

SOURCE = Path(__file__).parents[2] / "client" / "native"
SEED, TEST_FRACTION = 7, 0.2


def built(folder: Path, *settings: str, target: str = "fedhead-phone") -> Path:
    """A program of client/native, built with CMake; skips where that is impossible."""
    needed = {
        "cmake": "cmake", "c++": "g++", "protoc": "protobuf-compiler",
        "curl-config": "libcurl4-openssl-dev",
    }  # fmt: skip
    missing = [package for tool, package in needed.items() if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"not installed: apt-get install {' '.join(missing)}, or make native")
    kept = os.environ.get("FEDHEAD_NATIVE_BUILD")  # where an earlier build is used again
    name = hashlib.sha256(" ".join(settings).encode()).hexdigest()[:12]
    build = (Path(kept) if kept else folder) / name
    build.parent.mkdir(parents=True, exist_ok=True)
    with build.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker must not run what is being linked
        for command in (
            ["-S", SOURCE, "-B", build, "-DFEDHEAD_PHONE=ON", *settings],
            ["--build", build, "-j2", "--target", target],
        ):
            done = subprocess.run(["cmake", *command], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return build / target


def phone_with(runtime: str, folder: Path) -> Path:
    """fedhead-phone, built in a folder, with one runtime in it, or "none"."""
    if runtime == "none":
        return built(folder, "-DFEDHEAD_LITE=OFF")
    if runtime == "lite":
        return built(folder, f"-DCMAKE_PREFIX_PATH={Path(torch.__file__).parent}")
    root = next(iter(executorch.__path__))
    return built(
        folder, "-DFEDHEAD_LITE=OFF", "-DFEDHEAD_EXECUTORCH=ON", f"-DEXECUTORCH_ROOT={root}"
    )


@dataclass
class NativePhone:
    """A phone's folder and its process.

    Attributes:
        path: the folder.
        program: what runs.
        command: words before the program, of an emulator.
    """

    path: Path
    program: Path
    name: str
    command: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None

    @property
    def client(self) -> int:
        return client_of_phone(self.name)

    @property
    def log(self) -> str:
        return (self.path / "log").read_text()

    @property
    def state(self) -> Path:
        return self.path / "state"

    def start(self, *flags: str) -> subprocess.Popen[bytes]:
        with (self.path / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, self.program, self.path, *flags], stdout=log, stderr=log
            )
        return self.process

    def stop(self) -> None:
        """End it as a system does, which it must obey soon."""
        assert self.process
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0, self.log

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def once(self) -> int:
        return self.start("--once").wait(60)


def until(holds: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return found


def phone_of(deployment: Deployment, name: str, program: Path, **settings: object) -> NativePhone:
    """A phone's folder with a token, and no images in it."""
    path = deployment.path / "phones" / name
    path.mkdir(parents=True)
    issue_token(deployment.place.delivery, name, path / "phone.token")
    shutil.copy(deployment.place.server / "ca.crt", path / "ca.crt")
    lines = {
        "gateway": f"127.0.0.1:{deployment.port}", "delivery": "127.0.0.1:9095",
        "data": "folder:images", "state": "state", "max-examples": 0, "allow": "",
    } | settings  # fmt: skip
    text = "".join(
        f'{k} = "{v}"\n' if isinstance(v, str) else f"{k} = {v}\n" for k, v in lines.items()
    )
    (path / "phone.toml").write_text(f"# of {name}\n{text}")
    return NativePhone(path, program, name)


class Place(Deployment):
    """A deployment whose gateway serves a real backbone's files.

    Args:
        path: a folder for all of it.
        trained: the model; all images are on each phone.
        files: content by format.
    """

    def __init__(self, path: Path, trained: TrainedModel, files: Mapping[str, bytes]) -> None:
        super().__init__(path)
        self.trained = trained
        self.folder = self.place.backbones / trained.backbone.fingerprint
        self.folder.mkdir()
        for kind, content in files.items():
            (self.folder / file_name(kind, trained.classes)).write_bytes(content)
        self.native: list[NativePhone] = []
        ensure_authority(path)
        sign_server(path, ["127.0.0.1"], 2)
        spread(path)

    def describe(self, **changes: Any) -> DescribeReply:
        request = DescribeRequest(
            RUN, self.trained.classes, TEST_FRACTION, SEED, "a run",
            fingerprint=self.trained.backbone.fingerprint, **changes,
        )  # fmt: skip
        return DescribeReply.read(self.ask("describe", request))

    def phone(self, name: str, program: Path, **settings: object) -> NativePhone:
        """A phone's folder with a token and all images."""
        found = phone_of(self, name, program, **settings)
        write_images(found.path / "images", self.trained.images, self.trained.labels)
        self.native.append(found)
        return found

    def joined(self, *phones: NativePhone, **changes: Any) -> None:
        """Wait until the gateway counts on these phones."""
        wanted = {phone.client for phone in phones}
        until(
            lambda: wanted <= {*self.describe(**changes).clients},
            "phones do not join: " + "".join(phone.log for phone in phones),
        )

    def close(self) -> None:
        for phone in self.native:
            if phone.process and phone.process.poll() is None:
                phone.kill()
        super().close()


def heard(
    place: Deployment,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    refuse: Callable[[], grpc.StatusCode | None] = lambda: None,
    *,
    after: bool = False,
) -> list[Any]:
    """All that phones send to a method of the gateway from now on, as it comes.

    Args:
        place: its gateway is started anew.
        monkeypatch: of the test.
        method: ``check_in``, ``fetch``, ``upload``, ``submit`` or ``latest``.
        refuse: is asked at each call for the code that it ends with; None: it goes on.
        after: whether a call is done before it ends so: only its reply is lost.
    """
    sent, original = [], getattr(Calls, method)

    async def listen(self: Calls, request: Any, context: Any) -> Any:
        sent.append(type(request).FromString(request.SerializeToString()))
        code = refuse()
        if code is None or after:
            reply = await original(self, request, context)
        if code is not None:
            await context.abort(code, "as the test wants it")
        return reply

    monkeypatch.setattr(Calls, method, listen)
    place.stop()
    place.start()
    return sent


def write_images(folder: Path, images: Any, labels: npt.NDArray[np.int64]) -> None:
    for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        image.tofile(folder / str(label) / f"{i:05}.rgb")


def request_for(trained: TrainedModel, *clients: int, **changes: Any) -> TrainRequest:
    """A round of FedAvg, whose updates come one by one."""
    base = TrainRequest(
        trained.head, ClientPlan(), LocalTraining(0.05, local_epochs=3, batch_size=7),
        tuple(sorted(clients)), 1, RUN, SEED, trained.backbone.fingerprint, "individual",
        seconds=120.0,
    )  # fmt: skip
    return replace(base, **changes)


def arrays_of(
    reply: TrainReply, request: TrainRequest, client: int
) -> Mapping[str, npt.NDArray[np.generic]]:
    """One client's arrays, decoded."""
    i = reply.clients.index(client)
    return request.uplink.decode(client, {name: rows[i] for name, rows in reply.payloads.items()})


def examples_of(
    trained: TrainedModel, client: int, positions: npt.NDArray[np.int64] | None = None
) -> SimpleNamespace:
    """A phone's parts as Python makes them: ``train`` and ``test``, for ``actors.Node``.

    Args:
        trained: its images' features.
        client: the phone's number.
        positions: those that it uses, in the order of its folder; None: all.
    """
    order = np.lexsort((np.arange(len(trained.labels)), trained.labels))
    return parts_of(trained, client, trained.features[order], trained.labels[order], positions)


def parts_of(
    trained: TrainedModel,
    client: int,
    features: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64] | None = None,
) -> SimpleNamespace:
    """The same of any features."""
    backbone = trained.backbone
    everything = FeatureSet(features, labels, backbone.affine, backbone.fingerprint)
    used = np.arange(len(labels)) if positions is None else positions
    train, test = local_split(used, labels, client=client, test_fraction=TEST_FRACTION, seed=SEED)
    return SimpleNamespace(
        client=client, train=everything.select(train), test=everything.select(test)
    )
