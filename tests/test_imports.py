"""The rules of who may import whom, checked on the source."""

import ast
import os
import subprocess
import sys
from collections import deque
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("common", "client", "server", "simulations", "fedhead")
MAY_IMPORT = {
    "common": {"common"},
    "client": {"client", "common"},
    "server": {"server", "common"},
    "simulations": {"simulations", "server", "client", "common"},
    "fedhead": {*ROOMS},
}
# Rooms within a room: what they may import of it beside themselves.
MAY_IMPORT_WITHIN = {
    "client/cohort": ("client.local", "client.sgd"),
    "server/strategies": ("server.strategy",),
    "server/record": (),
    "server/export": ("server.record.replaced",),
    "server/delivery": ("server.export.card",),
}
# Strategies and trainers see arrays, never messages.
MAY_IMPORT_FLWR = (
    "client/app.py",
    "client/fork_server.py",
    "client/gateway/bridge.py",
    "client/supernode.py",
    "common/messages/",
    "common/records.py",
    "server/app.py",
    "server/round/",
    "server/summary.py",
    "simulations/bench/",
    "simulations/deploy/",
    "simulations/engines/",
    "simulations/run.py",
)
SOURCES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))


def imported(path: Path, *, for_types: bool = True) -> set[str]:
    """Modules, and whatever else is imported from them, dotted."""
    names, left = set(), deque([ast.parse(path.read_text())])
    while left:
        node = left.popleft()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not for_types:
            continue
        left.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_what_they_may(path: Path) -> None:
    relative = path.relative_to(ROOT)
    top = {name.partition(".")[0] for name in imported(path)}
    assert top & {*ROOMS, "tests"} <= MAY_IMPORT[relative.parts[0]]
    if not str(relative).startswith(MAY_IMPORT_FLWR):
        assert "flwr" not in top


@pytest.mark.parametrize("room", MAY_IMPORT_WITHIN)
def test_rooms_within_a_room_know_only_what_they_may(room: str) -> None:
    outer = room.partition("/")[0]
    own = (f"{room.replace('/', '.')}.", *(f"{name}." for name in MAY_IMPORT_WITHIN[room]))
    for path in (ROOT / room).rglob("*.py"):
        within = {f"{name}." for name in imported(path) if name.startswith(f"{outer}.")}
        assert [name for name in sorted(within) if not name.startswith(own)] == [], path


def test_no_module_imports_itself_by_way_of_others() -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in SOURCES
    }
    # What is imported within a function counts as well; `from a import b` may mean module a.b.
    graph = {
        name: {
            known
            for full in imported(path, for_types=False)
            for known in (full if full in modules else full.rpartition(".")[0],)
            if known in modules and known != name
        }
        for name, path in modules.items()
    }
    TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_rooms_stay_small_enough_to_look_over() -> None:
    entries = {
        room: [p.name for p in (ROOT / room).iterdir() if p.name not in ("__pycache__", "py.typed")]
        for room in ("server", "simulations")
    }
    assert len(entries["server"]) <= 10
    assert len(entries["simulations"]) <= 13


def test_the_device_path_imports_nothing_heavy() -> None:
    # Flower starts a process for each message on a device: what it imports is paid every round.
    heavy = {"torchvision", "pydantic", "datasets", "flwr_datasets", "pandas", "matplotlib",
             "sklearn", "ray", "tensorboardX", "numba", "scipy", "dp_accounting"}  # fmt: skip
    code = (
        "import sys, client.app, client.device, client.simulated\n"
        f"print(sorted(set(sys.modules) & {heavy!r}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_a_gateway_goes_without_torch() -> None:
    code = (
        "import sys, client.gateway.service, client.gateway.bridge, client.fork_server\n"
        "print({'torch', 'scipy', 'pandas', 'ray', 'pydantic_core'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_what_watches_over_a_device_or_server_goes_without_torch() -> None:
    code = (
        "import sys, simulations.deploy.launch\nprint({'torch', 'numpy', 'flwr'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_the_command_line_prepares_the_environment_before_anything_heavy_is_imported() -> None:
    code = (
        "import os, sys, fedhead.cli.main\n"
        "print({'torch', 'flwr', 'ray', 'grpc'} & {*sys.modules}, os.environ['OMP_WAIT_POLICY'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "set() PASSIVE"
