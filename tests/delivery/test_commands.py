"""A run's model from ``fedhead publish`` to a device and back, each command a real process.

What the device runs has no more than an install of the device brings.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from common.delivery.versions import _ARTIFACT
from simulations.deploy.folder import Ports, write_deployment
from simulations.deploy.settings import delivery_of
from simulations.run import run_in_process

FEDHEAD = [sys.executable, "-m", "fedhead"]
ENVIRONMENT = {**os.environ, "COLUMNS": "80", "OMP_NUM_THREADS": "1"}


def fedhead(*args: object, environment: Mapping[str, str] = ENVIRONMENT) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    done = subprocess.run(
        [*FEDHEAD, *map(str, args)], capture_output=True, text=True, env=environment, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def succeed(*args: object, environment: Mapping[str, str] = ENVIRONMENT) -> str:
    code, out, err = fedhead(*args, environment=environment)
    assert code == 0, err
    return out


@pytest.fixture
def deployed(tmp_path: Path) -> tuple[Path, Path]:
    """A deployment's server folder, and that of its device kitchen as it was carried there."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path / "garden"
    write_deployment(
        folder, addresses=["localhost"], devices=["kitchen"], days=1, ports=Ports(delivery=port)
    )
    device = shutil.copytree(folder / "devices" / "kitchen", tmp_path / "elsewhere" / "kitchen")
    return folder / "server", device


@contextmanager
def serving(server: Path, *options: str) -> Iterator[None]:
    """A delivery server's process, begun as by a shell's ``&`` and ended by a service manager."""
    begin = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    command = [*begin, *FEDHEAD, "delivery", "serve", str(server), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        try:
            assert process.stdout.readline().startswith("serving models at port ")
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0


@pytest.mark.slow
def test_a_model_goes_from_a_run_to_a_device_is_judged_and_rolled_back(
    tiny: Callable[..., Path], deployed: tuple[Path, Path], on_device: Mapping[str, str]
) -> None:
    from sklearn.datasets import load_digits

    first, second = tiny("train.rounds=1"), tiny("train.rounds=2", name="second")
    run_in_process(first)
    run_in_process(second)
    server, device = deployed
    digits = load_digits()
    for number in range(40):
        image = device / "images" / str(digits.target[number]) / f"{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * 15.9).astype("uint8")).save(image)

    def there(command: str, *options: str) -> str:
        return succeed("delivery", command, device, *options, environment=on_device)

    key = server.parent.parent / "signing.key"
    succeed("keys", "new", key)
    again = ["--address", "localhost", "--device", "kitchen", "--trust", f"{key}.pub"]
    succeed("deploy", server.parent, *again)
    shutil.copytree(server.parent / "devices" / "kitchen" / "trusted", device / "trusted")
    signed = ["--to", server, "--key", key]
    assert succeed("publish", first, *signed).startswith("model.pt version 1: ")
    with serving(server):
        assert "now model.pt version 1; " in there("fetch")
        assert json.loads(succeed("publish", second, *signed, "--json"))["version"] == 2
        fetched = json.loads(there("fetch", "--json"))
        assert fetched["version"] == 2
        model = device / "models" / "model.pt" / "current" / "model.pt"
        assert Path(fetched["model"]) == model
        assert model.read_bytes() == (second / "model.pt").read_bytes()
        told = there("report")
        assert " of 40 images, perhaps trained on, reported to localhost:" in told
        status = json.loads(succeed("delivery", "status", server, "--json"))[1]
        assert list(status["reports"]) == ["kitchen"]
        assert f"right in {100 * status['accuracy']:.2f} %" in told
        assert status["accuracy"] > 0.5
        assert f"{100 * status['accuracy']:.2f} %" in succeed("delivery", "status", server)
        assert "back to model.pt version 1" in there("rollback")
        assert model.read_bytes() == (first / "model.pt").read_bytes()
        assert "was rolled back" in there("fetch")
        third = server / "delivery" / "artifacts" / "model.pt" / "3"
        shutil.copytree(third.with_name("1"), third)
        facts = third / "artifact.json"
        facts.write_bytes(_ARTIFACT.pack(_ARTIFACT.read(facts) | {"version": 3}))
        code, _, err = fedhead("delivery", "fetch", device, environment=on_device)
        assert code == 1
        assert re.fullmatch(r"fedhead: model.pt version 3 is refused: .* is older than .*\n", err)
        assert model.read_bytes() == (first / "model.pt").read_bytes()
        shutil.rmtree(third)
        succeed("delivery", "restore", server, "1", "--key", key)
        assert "now model.pt version 3; " in there("fetch")
        succeed("delivery", "revoke", server, "kitchen")
        code, _, err = fedhead("delivery", "fetch", device, environment=on_device)
        assert code == 1
        assert re.fullmatch(r"fedhead: localhost:\d+: model.pt: the token is not valid\n", err)


@pytest.mark.slow
def test_a_device_killed_in_mid_download_goes_on_after_it(
    deployment, deployed: tuple[Path, Path]
) -> None:
    size = 3_000_000
    server, device = deployed
    deployment.folder = delivery_of(server)
    data = deployment.publish(1, size)
    shelf = device / "models" / "model.bin"
    fetch = ["delivery", "fetch", str(device), "--name", "model.bin"]
    with serving(server, "--rate", "2"):
        killed = subprocess.Popen([*FEDHEAD, *fetch], env=ENVIRONMENT)
        enough = random.Random(0).randrange(200_000, size // 2)
        while not (parts := list(shelf.glob(".*.part"))) or parts[0].stat().st_size < enough:
            assert killed.poll() is None
            time.sleep(0.01)
        killed.kill()
        killed.wait()
        have = parts[0].stat().st_size
        assert enough <= have < size
        fetched = json.loads(succeed(*fetch, "--json"))
    assert fetched["received_bytes"] == size - have
    assert Path(fetched["model"]).read_bytes() == data


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["publish", "nowhere", "--to", "SERVER"],
            "nowhere/model.pt: no such file; fedhead export",
        ),
        (["delivery", "status", "SERVER"], "server/delivery: nothing is published there"),
        (["delivery", "status", "nowhere"], "nowhere is not a folder of fedhead deploy"),
        (["delivery", "status", "GARDEN"], "server/delivery: nothing is published there"),
        (["publish", "nowhere", "--to", "GARDEN"], "nowhere/model.pt: no such file"),
        (["delivery", "revoke", "SERVER", "phone"], "phone has no token"),
        (["delivery", "token", "SERVER", "a/b", "--out", "x"], "'a/b' cannot name a device"),
        (["delivery", "token", "SERVER", "kitchen", "--out", "x"], "kitchen has a token already"),
        (["delivery", "rollback", "DEVICE"], "models/model.pt: nothing was fetched to there yet"),
        (["delivery", "report", "DEVICE"], "models/model.pt: nothing was fetched to there yet"),
        (["delivery", "rollback", "TRIED"], "models/model.pt: nothing was fetched to there yet"),
        (["delivery", "report", "TRIED"], "models/model.pt: nothing was fetched to there yet"),
        (["delivery", "fetch"], "device.toml: 1 problem: no such file"),
        (["delivery", "check-in", "DEVICE"], "check-in: cannot be reached (Connection refused)"),
        (["delivery", "serve", "GARDEN", "--rate", "nan"], "need 819 bytes a second, not nan"),
    ],
)
def test_what_can_be_mended_is_one_clear_line(
    args, words, deployed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    from fedhead.cli.main import main

    monkeypatch.chdir(tmp_path)
    server, device = deployed
    if "TRIED" in args:  # a fetch made the shelf, and brought nothing
        (device / "models" / "model.pt").mkdir(parents=True)
    folders = {"SERVER": server, "GARDEN": server.parent, "DEVICE": device, "TRIED": device}
    monkeypatch.setattr("sys.argv", ["fedhead", *(str(folders.get(arg, arg)) for arg in args)])
    with pytest.raises(SystemExit) as caught:
        main()
    err = capsys.readouterr().err
    assert caught.value.code == 1
    assert words in err
    assert err.startswith("fedhead: ")
    assert err.count("\n") == 1
