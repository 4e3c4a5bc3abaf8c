"""The C++ phone on a phone's processor, emulated: cross-compiled, it takes part in a round."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from common.errors import RunError
from common.types import ClientPlan, LocalTraining
from simulations.bench.speed.arm64 import default_folder, emulated_python, fetch_packages
from tests.client.gateway.actors import Node
from tests.client.native_phones import SOURCE, arrays_of, built, examples_of, request_for

# The first time fetches 50 MB; emulated, an image takes a tenth of a second.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

_PACKAGES = ("libcurl4-openssl-dev", "libprotobuf-dev", "libssl-dev")


@pytest.fixture(scope="module")
def arm64(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...]]:
    """The program for arm64, and the words that run it here."""
    if shutil.which("aarch64-linux-gnu-g++") is None:
        pytest.skip("a compiler for arm64 is missing: apt-get install g++-aarch64-linux-gnu")
    folder = tmp_path_factory.mktemp("arm64")
    root, site = folder / "root", folder / "site"
    try:
        qemu = emulated_python(default_folder())[0]
        fetch_packages(folder, root, _PACKAGES)
    except RunError as exc:
        pytest.skip(str(exc))
    wheel = f"executorch=={version('executorch')}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    platform = ["--platform", "manylinux_2_28_aarch64", "--only-binary=:all:"]
    if subprocess.run([*pip, *platform, wheel]).returncode:
        pytest.skip(f"{wheel} for arm64 cannot be fetched here")
    sdk = site / "executorch"
    program = built(
        folder, f"-DCMAKE_TOOLCHAIN_FILE={SOURCE / 'arm64.cmake'}", f"-DARM64_ROOT={root}",
        "-DFEDHEAD_LITE=OFF", "-DFEDHEAD_EXECUTORCH=ON", f"-DEXECUTORCH_ROOT={sdk}",
    )  # fmt: skip
    libraries = (root / "usr/lib/aarch64-linux-gnu", root / "lib/aarch64-linux-gnu", sdk / "lib")
    search = ":".join(map(str, libraries))
    words = (qemu, "-cpu", "cortex-a76", "-L", str(root), "-E", f"LD_LIBRARY_PATH={search}")
    return program, words


def test_an_emulated_arm64_phone_takes_part_in_rounds(arm64, place, tmp_path):
    program, words = arm64
    machine = subprocess.run(["readelf", "-h", program], capture_output=True, text=True).stdout
    assert "AArch64" in machine
    phone = place.phone("anna", program)
    phone.command = words
    phone.start()
    place.joined(phone)
    rounds = [
        {"training": LocalTraining(0.05, 2, 7, momentum=0.5), "plan": ClientPlan(mu=0.1)},
        {"plan": ClientPlan(kind="statistics", fields=("gram", "moments"), weighting="uniform")},
    ]
    for number, changes in enumerate(rounds, 1):
        request = request_for(place.trained, phone.client, round_number=number, **changes)
        reply = place.train(request).result(120)
        assert not reply.rejected, phone.log
        node = Node(tmp_path / str(number), [examples_of(place.trained, phone.client)])
        expected = arrays_of(node.update(request), request, phone.client)
        for field, array in arrays_of(reply, request, phone.client).items():
            tolerance = 1e-6 if field == "delta" else 0  # features have the same bits
            np.testing.assert_allclose(array, expected[field], rtol=0, atol=tolerance)
            assert np.abs(expected[field]).max() > 1e-3
    phone.stop()
