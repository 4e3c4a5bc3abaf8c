"""What every test shares: a cache of its own, and small experiments."""

from __future__ import annotations

import logging
import math
import os
import runpy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from importlib.metadata import Distribution, packages_distributions
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from packaging.utils import canonicalize_name

import common.progress
from common.files import write_atomic
from common.machine import processor

if TYPE_CHECKING:
    from common.backbone.blocks import Features
    from server.export.exporters import ExportReport
    from server.export.trained import TrainedModel

# Before flwr or torch is imported anywhere; see fedhead/environment.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


# What these make for all their tests takes long: one of pytest-xdist's workers has the whole file.
TOGETHER = {
    "tests/client/test_android.py": "exported files",
    "tests/server/export/test_cards.py": "exported files",
    "tests/server/export/test_device_model.py": "exported files",
    "tests/server/export/test_export_card.py": "exported files",
    "tests/server/export/test_export_computes.py": "exported files",
    "tests/server/export/test_export_engines.py": "exported files",
    "tests/server/export/test_export_refused.py": "exported files",
    "tests/server/export/test_other_runtimes.py": "other runtimes",
    "tests/server/export/test_projected.py": "exported files",
    "tests/common/test_backbone_cache.py": "backbones",
    "tests/common/test_backbone_features.py": "backbones",
    "tests/common/test_backbone_files.py": "backbones",
    "tests/common/test_backbone_prepare.py": "backbones",
    "tests/common/test_projection.py": "backbones",
    "tests/simulations/report/test_browser.py": "browser",
    "tests/simulations/report/test_browser_bytes.py": "browser",
    "tests/simulations/report/test_browser_budgets.py": "browser",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Share the tests out one by one, but for files that stay together.

    pytest-xdist's own --dist loadgroup does nothing with pytest 9.
    """
    if config.getoption("maxschedchunk"):
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return TOGETHER.get(nodeid.partition("::")[0], nodeid)

    return Scheduling(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which processor the tests ran on: kernels, and so roundings, depend on it."""
    import torch

    kernels = torch.backends.cpu.get_cpu_capability()
    terminalreporter.write_line(f"processor: {processor()}; torch's kernels: {kernels}")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for the session that pytest's workers share; no test touches the user's.

    A backbone that one of them has prepared, the others find.
    """
    base = tmp_path_factory.getbasetemp()
    path = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    before = os.environ.get("FEDHEAD_CACHE")
    os.environ["FEDHEAD_CACHE"] = str(path)
    yield path
    if before is None:
        del os.environ["FEDHEAD_CACHE"]
    else:
        os.environ["FEDHEAD_CACHE"] = before


@pytest.fixture(scope="session", autouse=True)
def no_signs_of_life() -> Iterator[None]:
    """What is logged does not depend on how slow the machine is."""
    before, common.progress._SILENCE_SECONDS = common.progress._SILENCE_SECONDS, math.inf
    yield
    common.progress._SILENCE_SECONDS = before


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """No test leaves a handler behind: what it writes to is closed with the test."""
    logger = logging.getLogger("fedhead")
    before = [*logger.handlers], logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate, logger.level = before


# scikit-learn's 8x8 digits, scaled up to 64 pixels: seconds of work, and learnable.
TINY = """
name = "tiny"
[data]
source = "digits"
calibration-examples = 64
[partition]
scheme = "dirichlet"
alpha = 1.0
num-clients = 8
[backbone]
weights = "imagenet"
input-size = 64
distill-steps = 0
[train]
rounds = 5
clients-per-round = 4
lr = 0.01
[baseline]
enabled = false
"""


@pytest.fixture(scope="session")
def tiny_toml() -> str:
    """The small experiment as a file's content."""
    pytest.importorskip("sklearn", reason="pip install 'fedhead[demo]'")
    return TINY


@pytest.fixture
def tiny(tiny_toml: str, tmp_path: Path) -> Callable[..., Path]:
    """Makes a run folder of a small experiment, with overrides such as "train.rounds=3"."""
    from common.config import load_config, parse_overrides
    from simulations.run import new_run

    def make(*overrides: str, name: str = "run") -> Path:
        file = tmp_path / "tiny.toml"
        write_atomic(file, tiny_toml.encode())  # another thread may be reading it
        items = [f"out={tmp_path / name}", *overrides]
        return new_run(load_config(file, parse_overrides(items)))

    return make


@pytest.fixture
def cut_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """Within it, a run is interrupted once it has saved this round, as by Ctrl-C."""
    import server.round.loop

    save = server.round.loop.save_checkpoint

    @contextmanager
    def cut(last: int) -> Iterator[None]:
        def save_and_stop(*args: Any, round_number: int, **kwargs: Any) -> None:
            save(*args, round_number=round_number, **kwargs)
            if round_number == last:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(server.round.loop, "save_checkpoint", save_and_stop)
            yield

    return cut


@pytest.fixture
def quick(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """As tiny, but without the export, which starts a process and has tests of its own."""

    import server.app
    from server.export.runtime_cards import ExportReport

    def skip(*args: object) -> ExportReport:
        return ExportReport("model", Path(), 0, "")

    monkeypatch.setattr(server.app, "export", skip)
    return tiny


@pytest.fixture
def fedhead(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in this process: exit code, standard output, standard error."""
    from fedhead.cli.main import main

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["fedhead", *map(str, args)])
        monkeypatch.setenv("COLUMNS", "80")
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capsys.readouterr()
        code = caught.value.code
        return int(code) if code else 0, out, err

    return run


@pytest.fixture(scope="session")
def make_trained(cache: Path) -> Callable[..., TrainedModel]:
    """Makes a real int8 backbone with a ridge head: 400 real images, 60 others to test on."""
    pytest.importorskip("sklearn", reason="pip install 'fedhead[demo]'")
    import numpy as np
    from sklearn.datasets import load_digits

    from common.backbone.cache import cached_backbone
    from common.backbone.recipe import Recipe
    from common.images import decode_array
    from common.types import Head
    from server.export.trained import TrainedModel

    digits = load_digits()
    pixels = (digits.images[:460] * (255 / 16)).astype(np.uint8)
    labels = digits.target[:460].astype(np.int64)

    @lru_cache
    def make(arch: str, weights: str, size: int, features: Features = "gap") -> TrainedModel:
        images = np.stack([decode_array(image, size) for image in pixels])
        recipe = Recipe(arch, weights, size, "qnnpack", 0, "standardize", 0, features=features)
        backbone = cached_backbone(recipe, images[:64], cache)
        q = np.concatenate([backbone.features(part) for part in np.split(images, 10)])
        x = np.ones((400, backbone.spec.num_features + 1))
        x[:, :-1] = backbone.affine(q[:400])
        gram = x.T @ x + 100 * np.eye(x.shape[1])
        return TrainedModel(
            backbone,
            Head.from_matrix(np.linalg.solve(gram, x.T @ np.eye(10)[labels[:400]]).T),
            classes=tuple(str(digit) for digit in range(10)),
            metrics={"accuracy": 0.5, "loss": float("nan")},
            images=images[400:],
            features=q[400:],
            labels=labels[400:],
        )

    return make


@pytest.fixture(scope="session")
def trained(make_trained: Callable[..., TrainedModel]) -> TrainedModel:
    """MobileNetV2 with random weights at 32 pixels: small enough for the fast tier."""
    return make_trained("mobilenet_v2", "random", 32)


@pytest.fixture(scope="session")
def exported(trained: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    from server.export.exporters import export

    return export(trained, "model", tmp_path_factory.mktemp("run") / "model.pt")


@pytest.fixture(scope="session")
def device_files(
    trained: TrainedModel, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, ExportReport]:
    """The trained model as device.pt and device.ptl, by target."""
    from server.export.exporters import FILES, export

    folder = tmp_path_factory.mktemp("device")
    return {
        target: export(trained, target, folder / FILES[target]) for target in ("device", "lite")
    }


@pytest.fixture
def set_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the clock of all processes started from now on, by seconds, as often as wanted."""
    libraries = [*Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")]
    if not libraries:
        pytest.skip("libfaketime is not here: apt-get install faketime")
    file = tmp_path / "clock-is-off-by"

    def set_clock(seconds: int) -> None:
        write_atomic(file, f"{seconds:+d}s".encode())

    set_clock(0)
    # libfaketime takes an absolute time on the monotonic clock, as time.sleep has it, for nonsense.
    sleep = "import select, time\ntime.sleep = lambda seconds: select.select([], [], [], seconds)\n"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(sleep)
    search = filter(None, [str(tmp_path / "site"), os.environ.get("PYTHONPATH")])
    for name, value in {
        "PYTHONPATH": os.pathsep.join(search),
        "LD_PRELOAD": libraries[0],
        "FAKETIME_TIMESTAMP_FILE": file,
        "FAKETIME_NO_CACHE": 1,
        "FAKETIME_DONT_FAKE_MONOTONIC": 1,  # a clock that is set back leaves it alone
        "FAKETIME_FORCE_MONOTONIC_FIX": 0,  # it lets threads that wait for Python's lock spin
    }.items():
        monkeypatch.setenv(name, str(value))
    return set_clock


ROOT = Path(__file__).parent.parent

# Python runs a module sitecustomize when it starts; so the processes that a device starts have it.
_ONLY = """
from importlib.machinery import PathFinder

find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, path=None, target=None: (
    None if name in {absent!r} else find_spec(name, path, target)
)
"""


@pytest.fixture(scope="session")
def needed() -> Callable[[list[str]], Mapping[str, Distribution]]:
    """What an install of some requirements brings, as docs/install_sizes.py counts it."""
    return runpy.run_path(str(ROOT / "docs" / "install_sizes.py"))["needed"]


@pytest.fixture(scope="session")
def with_only(
    needed: Callable[[list[str]], Mapping[str, Distribution]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Mapping[str, str]]:
    """Makes an environment in which only what these requirements bring can be imported."""

    def make(requirements: list[str], *others: str) -> Mapping[str, str]:
        there = needed(requirements).keys() | {"fedhead", *others}
        absent = {
            module
            for module, names in packages_distributions().items()
            if not there.intersection(map(canonicalize_name, names))
        }
        folder = tmp_path_factory.mktemp("only")
        (folder / "sitecustomize.py").write_text(_ONLY.format(absent=absent))
        search = os.pathsep.join([str(folder), str(ROOT)])
        return {**os.environ, "PYTHONPATH": search, "COLUMNS": "80", "OMP_NUM_THREADS": "1"}

    return make


@pytest.fixture(scope="session")
def on_device(with_only: Callable[..., Mapping[str, str]]) -> Mapping[str, str]:
    """An environment in which nothing can be imported that fedhead[device] does not bring."""
    return with_only(["fedhead[device]"])
