"""A phone's processor without a phone: ``python -m simulations.bench.speed.arm64 RUN``.

It runs a run's device.ptl under emulated arm64 and on this machine, and compares the results. The
emulator (QEMU), a Python and a torch for arm64 are downloaded once (120 MB) from Debian and PyPI
into a folder of the user's cache; nothing is installed into the system.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import FedheadError, RunError
from common.log import start_log
from common.progress import stage
from server.export.card import read_card
from server.export.fresh_process import fresh_process
from server.export.trained import TrainedModel
from simulations.run import trained_run

__all__ = ["Arm64Report", "compare_on_arm64", "emulated_python", "fetch_packages"]

# An older torch than the exporting one, as on a phone.
_TORCH = "torch==2.8.0"
_PURE = ("filelock", "fsspec", "jinja2", "markupsafe", "mpmath", "networkx", "sympy",
         "typing_extensions")  # fmt: skip
_DEBIAN = ("python3-minimal", "libpython3-stdlib", "libgomp1", "libstdc++6")
_EXAMPLES = 16  # the number that ``run_exported`` trains on
_BATCH, _EPOCHS, _SEED = 8, 25, 7  # 50 steps
_LR = 0.05
_TIMEOUT_SECONDS = 1200


@dataclass(frozen=True)
class Arm64Report:
    """One file on two processors.

    Attributes:
        max_feature_difference: in steps of uint8; 0: the same bits.
        max_delta_difference: largest difference of the head after 50 steps.
        max_delta: largest change of the head by these steps, for comparison.
    """

    max_feature_difference: int
    max_delta_difference: float
    max_delta: float


def compare_on_arm64(file: Path, trained: TrainedModel, python: Sequence[str]) -> Arm64Report:
    """Compare features of real images and 50 training steps on both processors.

    Args:
        file: device.pt or device.ptl.
        trained: the model that it was exported from.
        python: the command of ``emulated_python``.

    Raises:
        ExportError: it is not such a file, or it does not run.
    """
    card = read_card(file)
    images, labels = trained.images[:_EXAMPLES], trained.labels[:_EXAMPLES]
    here = _outputs(file, card.target, images, labels, card.num_features, ())
    there = _outputs(file, card.target, images, labels, card.num_features, python)
    features = np.abs(here["features"].astype(np.int16) - there["features"])
    return Arm64Report(
        int(features.max()),
        float(np.abs(here["delta"] - there["delta"]).max()),
        float(np.abs(here["delta"]).max()),
    )


def _outputs(
    file: Path,
    kind: str,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    num_features: int,
    python: Sequence[str],
) -> dict[str, npt.NDArray[Any]]:
    classes = len(read_card(file).classes)
    logits = np.empty((_EXAMPLES, classes), np.float32)
    expected: dict[str, npt.NDArray[Any]] = {
        "features": np.empty((_EXAMPLES, num_features), np.uint8),
        "logits": logits,
        "default_logits": logits,
        "delta": np.empty((classes, num_features + 1), np.float32),
    }
    job = {
        "model": str(file), "kind": kind, "engine": "qnnpack",
        "training": (_LR, _EPOCHS, _BATCH, _SEED),
    }  # fmt: skip
    with fresh_process("run_exported.py", python) as process:
        return process.run(job, {"images": images, "labels": labels}, expected)[0]


def emulated_python(folder: Path) -> list[str]:
    """The command that starts an arm64 Python with torch; missing parts are downloaded.

    Raises:
        RunError: it is not possible on this machine, with the reason.
    """
    qemu = folder / "qemu" / "usr" / "bin" / "qemu-aarch64-static"
    root, site = folder / "root", folder / "site"
    if not (folder / "complete").exists():
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise RunError(f"arm64 cannot be emulated here: {tool} is missing (Debian only)")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _fetch_emulator(folder)
        fetch_packages(folder, root, _DEBIAN)
        _fetch_torch(root, site)
        (folder / "complete").touch()
    libraries = ":".join(str(root / folder) for folder in ("usr/lib/aarch64-linux-gnu", "usr/lib"))
    variables = {
        "LD_LIBRARY_PATH": libraries,
        "PYTHONHOME": str(root / "usr"),
        "PYTHONPATH": str(site),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    settings = [word for item in variables.items() for word in ("-E", "=".join(item))]
    return [str(qemu), "-L", str(root), *settings, str(_python(root))]


def _python(root: Path) -> Path:
    found = sorted((root / "usr" / "bin").glob("python3.[0-9]*"))
    if not found:
        raise RunError(f"arm64 cannot be emulated here: no Python in {root}")
    return found[0]


def _fetch_emulator(folder: Path) -> None:
    _run(["apt-get", "download", "qemu-user-static"], folder)
    for package in folder.glob("qemu-user-static_*.deb"):
        _run(["dpkg-deb", "-x", str(package), "qemu"], folder)


def fetch_packages(folder: Path, root: Path, packages: Sequence[str]) -> None:
    """Download arm64 packages with their dependencies, for this machine's Debian release.

    Args:
        folder: for what is downloaded; an earlier download must not be in it.
        root: where the packages are unpacked; nothing of theirs is run.
        packages: their names.

    Raises:
        RunError: it is not possible on this machine, with the reason.
    """
    state = folder / "apt"
    for place in ("state/lists/partial", "cache/archives/partial"):
        (state / place).mkdir(parents=True)
    (state / "status").touch()  # says that nothing is installed there
    settings = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Install-Recommends": "false",
        "Dir::State": str(state / "state"),
        "Dir::State::status": str(state / "status"),
        "Dir::Cache": str(state / "cache"),
        "Debug::NoLocking": "true",
    }
    apt = ["apt-get", "-q", "-y", *(f"-o{key}={value}" for key, value in settings.items())]
    _run([*apt, "update"], folder)
    _run([*apt, "install", "--download-only", *packages], folder)
    for package in sorted((state / "cache" / "archives").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(root)], folder)


def _fetch_torch(root: Path, site: Path) -> None:
    version = _python(root).name.removeprefix("python")
    # Dependencies are named, because pip would choose them for this machine's processor.
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site),
        "--platform", "manylinux_2_28_aarch64", "--python-version", version,
        "--platform", "manylinux_2_17_aarch64", "--only-binary=:all:", _TORCH, *_PURE,
    ]  # fmt: skip
    _run(command, root)


def _run(command: Sequence[str], folder: Path) -> None:
    try:
        done = subprocess.run(  # noqa: S603
            command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired as exc:
        raise RunError(f"arm64 cannot be emulated here: {command[0]} took too long") from exc
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise RunError(f"arm64 cannot be emulated here: {' '.join(command[:2])}: {lines[-1]}")


def default_folder() -> Path:
    """``$FEDHEAD_ARM64``, or a folder in the user's cache."""
    chosen = os.environ.get("FEDHEAD_ARM64")
    return Path(chosen) if chosen else Path.home() / ".cache" / "fedhead-arm64"


def main() -> None:
    """Compare the device.ptl of the run that the command line names."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m simulations.bench.speed.arm64 RUN")
    run = Path(sys.argv[1]).resolve()
    start_log()
    try:
        with stage("emulating arm64"):
            python = emulated_python(default_folder())
            report = compare_on_arm64(run / "device.ptl", trained_run(run), python)
    except FedheadError as exc:
        sys.exit(f"fedhead: {exc}")
    print(f"features: largest difference {report.max_feature_difference} of 255")
    print(
        f"head after 50 steps: largest difference {report.max_delta_difference:.2g} "
        f"(largest change {report.max_delta:.2g})"
    )
    sys.exit(report.max_feature_difference > 0 or not report.max_delta_difference <= 1e-6)


if __name__ == "__main__":
    main()
