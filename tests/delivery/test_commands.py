"""A run's model from ``fedhead publish`` to a device and back, each command a real process."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from simulations.run import run_in_process

ROOT = Path(__file__).parent.parent.parent
FEDHEAD = [sys.executable, "-m", "simulations"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "OMP_NUM_THREADS": "1"}


def fedhead(*args: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    done = subprocess.run(
        [*FEDHEAD, *map(str, args)], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def succeed(*args: object) -> str:
    code, out, err = fedhead(*args)
    assert code == 0, err
    return out


@contextmanager
def serving(folder: Path, pki: Path, *options: str) -> Iterator[str]:
    """A server process; gives its address, and ends it as a service manager does."""
    command = [*FEDHEAD, "delivery", "serve", folder, "--cert", pki / "server.crt"]
    command += ["--key", pki / "server.key", "--host", "127.0.0.1", "--port", "0", *options]
    with subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as server:
        try:
            line = server.stdout.readline()
            assert line.startswith(f"serving {folder} on 127.0.0.1:")
            yield line.split()[-1]
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0


@pytest.mark.slow
def test_a_model_goes_from_a_run_to_a_device_is_judged_and_rolled_back(
    tiny: Callable[..., Path], pki: Path, tmp_path: Path
) -> None:
    from sklearn.datasets import load_digits

    first, second = tiny("train.rounds=1"), tiny("train.rounds=2", name="second")
    run_in_process(first)
    run_in_process(second)
    folder, models, token = tmp_path / "delivery", tmp_path / "models", tmp_path / "phone-1.token"
    device = ["--ca", pki / "ca.crt", "--token", token]
    digits = load_digits()
    for number in range(40):
        picture = tmp_path / "mine" / str(digits.target[number]) / f"{number}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * 15.9).astype("uint8")).save(picture)

    assert succeed("publish", first, "--to", folder).startswith("model.pt version 1: ")
    succeed("delivery", "token", folder, "phone-1", "--out", token)
    with serving(folder, pki) as server:
        assert "now model.pt version 1; " in succeed("delivery", "fetch", server, models, *device)
        assert json.loads(succeed("publish", second, "--to", folder, "--json"))["version"] == 2
        fetched = json.loads(succeed("delivery", "fetch", server, models, *device, "--json"))
        assert fetched["version"] == 2
        model = Path(fetched["model"])
        assert model.read_bytes() == (second / "model.pt").read_bytes()
        told = succeed("delivery", "report", server, models, "--data", tmp_path / "mine", *device)
        assert " of 40 pictures, told " in told
        accuracy = json.loads(succeed("delivery", "status", folder, "--json"))[1]["accuracy"]
        assert f"right in {100 * accuracy:.2f} %" in told
        assert accuracy > 0.5
        assert f"{100 * accuracy:.2f} %" in succeed("delivery", "status", folder)
        assert "back to model.pt version 1" in succeed("delivery", "rollback", models)
        assert model.read_bytes() == (first / "model.pt").read_bytes()
        assert "was rolled back" in succeed("delivery", "fetch", server, models, *device)
        succeed("delivery", "revoke", folder, "phone-1")
        code, _, err = fedhead("delivery", "fetch", server, models, *device)
        assert (code, err) == (1, f"fedhead: {server}: the token is not valid\n")


@pytest.mark.slow
def test_a_device_killed_in_mid_download_goes_on_after_it(
    deployment, pki: Path, tmp_path: Path
) -> None:
    size = 3_000_000
    data = deployment.publish(1, size)
    shelf = deployment.models / "model.bin"
    device = ["--ca", pki / "ca.crt", "--token", deployment.token, "--name", "model.bin"]
    with serving(deployment.folder, pki, "--rate", "2") as server:
        command = [*FEDHEAD, "delivery", "fetch", server, deployment.models, *device]
        killed = subprocess.Popen(list(map(str, command)), env=ENVIRONMENT)
        enough = random.Random(0).randrange(200_000, size // 2)
        while not (parts := list(shelf.glob(".*.part"))) or parts[0].stat().st_size < enough:
            assert killed.poll() is None
            time.sleep(0.01)
        killed.kill()
        killed.wait()
        have = parts[0].stat().st_size
        assert enough <= have < size
        fetched = json.loads(
            succeed("delivery", "fetch", server, deployment.models, *device, "--json")
        )
    assert fetched["received_bytes"] == size - have
    assert Path(fetched["model"]).read_bytes() == data


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["publish", "nowhere", "--to", "x"], "nowhere/model.pt: no such file; fedhead export"),
        (["delivery", "status", "nowhere"], "nowhere: nothing is published there"),
        (["delivery", "rollback", "nowhere"], "nowhere/model.pt: nothing was fetched to there yet"),
        (["delivery", "revoke", "nowhere", "phone"], "phone has no token"),
        (["delivery", "token", "nowhere", "a/b", "--out", "x"], "'a/b' cannot name a device"),
    ],
)
def test_what_can_be_mended_is_one_clear_line(
    args, words, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys
) -> None:
    from simulations.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["fedhead", *args])
    with pytest.raises(SystemExit) as caught:
        main()
    err = capsys.readouterr().err
    assert caught.value.code == 1
    assert words in err
    assert err.startswith("fedhead: ")
    assert err.count("\n") == 1
