"""The rules of who may import whom, checked on the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("common", "client", "server", "simulations")
MAY_IMPORT = {
    "common": {"common"},
    "client": {"client", "common"},
    "server": {"server", "common"},
    "simulations": set(ROOMS),
}
# Strategies and trainers see arrays, never messages.
MAY_IMPORT_FLWR = {
    "client/app.py",
    "client/fork_server.py",
    "client/supernode.py",
    "common/messages.py",
    "common/records.py",
    "server/admission.py",
    "server/app.py",
    "server/exchange.py",
    "server/engine.py",
    "server/stock.py",
    "server/collect.py",
    "server/join.py",
    "server/registry.py",
    "server/replies.py",
    "server/stragglers.py",
    "server/summary.py",
    "server/unreadable.py",
    "simulations/bench/run_fedhead.py",
    "simulations/bench/run_flower.py",
    "simulations/deploy/app.py",
    "simulations/deploy/operator.py",
    "simulations/deploy/serverapp.py",
    "simulations/deploy/standin.py",
    "simulations/deploy/superlink.py",
    "simulations/grid.py",
    "simulations/run.py",
}
SOURCES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_what_they_may(path: Path) -> None:
    relative = path.relative_to(ROOT)
    rooms = imported(path) & {*ROOMS, "tests"}
    assert rooms <= MAY_IMPORT[relative.parts[0]]
    if str(relative) not in MAY_IMPORT_FLWR:
        assert "flwr" not in imported(path)


def test_the_device_path_imports_nothing_heavy() -> None:
    # Flower starts a process for each message on a device: what it imports is paid every round.
    heavy = {"torchvision", "pydantic", "datasets", "flwr_datasets", "pandas", "matplotlib",
             "sklearn", "ray", "tensorboardX", "numba"}  # fmt: skip
    code = (
        f"import sys, client.app; import client.device\nprint(sorted(set(sys.modules) & {heavy!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_what_watches_over_a_device_or_server_goes_without_torch() -> None:
    code = (
        "import sys, simulations.deploy.launch\nprint({'torch', 'numpy', 'flwr'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
