"""A whole simulated fleet: its deployment, the gateway, the phones, and a run on them."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from client.gateway.bridge import app as bridge
from common.config import Config
from common.errors import ConfigError, RunError
from common.experiment import (
    calibration_positions,
    client_shares,
    experiment_dataset,
    experiment_features,
    run_config,
)
from common.files import write_atomic
from common.progress import stage
from common.types import IntArray
from server.app import run_experiment, watched
from server.export.run_model import prepare
from server.record.progress import OnRound
from server.round.roster import Roster
from simulations.bench.fleet.deployment import Place, make_place, phone_names
from simulations.bench.fleet.figures import fleet_figures
from simulations.bench.fleet.grid import GatewayGrid
from simulations.bench.fleet.orders import Orders, write_images, write_orders
from simulations.bench.fleet.profile import PROFILES, Profile
from simulations.bench.fleet.watch import Watch
from simulations.deploy.processes import Process, own_folder, running
from simulations.engines.flower import flower_environment
from simulations.report.curves import write_curves
from simulations.run import beginning, read_summary, run_values

__all__ = ["Fleet", "simulate"]

_IMAGES = 15  # of a share, on average: with more shares the partition would leave some empty
_START_SECONDS, _LOOK_SECONDS, _IDLE_SECONDS = 60.0, 0.1, 2.0


@dataclass(frozen=True)
class Fleet:
    """A fleet of phones.

    Attributes:
        phones: their number.
        profile: when they are there.
        faults: share of the tasks of which nothing comes in time.
        connections: TLS connections that they share; 0: each has its own.
        check_ins_per_second: the pace that the gateway gives them.

    Raises:
        ConfigError: a number is out of its range.
    """

    phones: int = 10_000
    profile: Profile = PROFILES["always"]
    faults: float = 0.1
    connections: int = 50
    check_ins_per_second: float = 500.0

    def __post_init__(self) -> None:
        problems = []
        if self.phones < 1:
            problems.append(f"phones is {self.phones}, expected at least 1")
        if not 0 <= self.faults <= 1:
            problems.append(f"faults is {self.faults:g}, expected a share from 0 to 1")
        if self.connections < 0:
            problems.append(f"connections is {self.connections}, expected 0 or more")
        if not self.check_ins_per_second > 0:
            problems.append("check-ins-per-second must be above 0")
        if problems:
            raise ConfigError(problems, "fleet")

    @property
    def window_seconds(self) -> float:
        """Seconds between two check-ins of a phone, on average."""
        return max(10.0, self.phones / self.check_ins_per_second)

    @property
    def deadline_seconds(self) -> float:
        """Seconds of a round: an asked phone may not come before twice its window has passed."""
        return max(30.0, 3 * self.window_seconds)


def simulate(
    config: Config, fleet: Fleet, *, overwrite: bool = False, on_round: OnRound = lambda _: None
) -> dict[str, Any]:
    """Run an experiment on a simulated fleet.

    Args:
        config: the experiment. Its partition says how images are dealt out: phone i has those of
            its client i modulo their number.
        fleet: the phones.
        overwrite: replace the run that ``out`` holds.
        on_round: is told of each round.

    Returns:
        See ``fleet_figures``; also in fleet.json of the run's folder.

    Raises:
        FedheadError: as for a run; or the gateway does not start, or ends.
    """
    with own_folder("fleet") as own, beginning(config, overwrite=overwrite) as path:
        with stage("preparing the fleet"):
            orders, place = _prepare(config, fleet, own)
        figures, ends = Path(orders.figures), list[float]()

        def tell(metrics: Mapping[str, Any]) -> None:
            ends.append(json.loads(figures.read_bytes())["seconds"])
            on_round(metrics)

        with _service(place, path / "gateway.log") as watch:
            with _crowd(own, orders, path / "phones.log") as crowd:
                _until(figures.exists, crowd, "the phones", path / "phones.log")
                _run(path, place, tell)
            time.sleep(_IDLE_SECONDS)  # the phones are gone, and so should be what they held
        found = fleet_figures(
            json.loads(figures.read_bytes()), place.counted(), watch, read_summary(path),
            fleet.profile, steady=(1.5 * fleet.window_seconds, ends[-1]),
        )  # fmt: skip
        found["run"] = str(path)
        write_atomic(path / "fleet.json", json.dumps(found, indent=1).encode())
    return found


def _prepare(config: Config, fleet: Fleet, own: Path) -> tuple[Orders, Place]:
    """Everything on disk that the processes need."""
    backbone = prepare(config, experiment_dataset(config))
    names, bytes_of = phone_names(fleet.phones), {backbone.fingerprint: backbone.to_bytes()}
    place = make_place(own, names, bytes_of, {"check-ins-per-second": fleet.check_ins_per_second})
    images = own / "images"
    write_images(images, experiment_features(config, backbone), _dealt(config, fleet))
    orders = Orders(
        gateway=place.address,
        authority=str(place.server / "ca.crt"),
        tokens=place.tokens,
        images=str(images),
        profile=fleet.profile,
        connections=fleet.connections,
        faults=fleet.faults,
        starts_within=fleet.window_seconds,
        seed=config.seed,
        figures=str(own / "figures.json"),
    )
    return orders, place


def _dealt(config: Config, fleet: Fleet) -> list[IntArray]:
    """The images of each client of the partition, test parts included."""
    free = len(experiment_dataset(config).train) - len(calibration_positions(config))
    most = max(1, free // _IMAGES)
    count = min(config.partition.num_clients, fleet.phones, most)
    partition = config.partition.model_copy(update={"num_clients": count, "test_fraction": 0.0})
    shares = client_shares(config.model_copy(update={"partition": partition}))
    return [share.train for share in shares if len(share.train)]


@contextmanager
def _service(place: Place, log: Path) -> Iterator[Watch]:
    """The gateway's service, watched until the end of the block."""
    with log.open("wb") as output, _started(place.service_command(), output) as process:
        _until(place.socket.exists, process, "the gateway's service", log)
        with Watch(_child(process)) as watch:
            time.sleep(_IDLE_SECONDS)
            yield watch
        if process.poll() is not None:
            raise RunError(f"the gateway's service has ended: {log} says why")


@contextmanager
def _crowd(own: Path, orders: Orders, log: Path) -> Iterator[Process]:
    """The process of the phones."""
    file = own / "orders.json"
    write_orders(file, orders)
    command = [sys.executable, "-P", "-m", "simulations.bench.fleet.crowd", str(file)]
    with log.open("wb") as output, _started(command, output) as process:
        yield process


def _started(command: Sequence[str], output: IO[bytes]) -> AbstractContextManager[Process]:
    environment = flower_environment() | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return running(command, environment, output)


def _child(keeper: Process) -> int:
    """The process that a keeper keeps."""
    (child,) = psutil.Process(keeper.pid).children()
    return int(child.pid)


def _until(ready: Callable[[], bool], process: Process, what: str, log: Path) -> None:
    """Wait until a process is ready.

    Raises:
        RunError: it is not, or it has ended.
    """
    ends = time.monotonic() + _START_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > ends:
            raise RunError(f"{what} did not start: {log} says why")
        time.sleep(_LOOK_SECONDS)


def _run(path: Path, place: Place, on_round: OnRound) -> None:
    """The run, on the only node that there is: the gateway."""
    values = run_values(path)
    node = {"gateway": str(place.socket)}
    with GatewayGrid(bridge, node, values) as grid, watched("", on_round) as progress:
        run_experiment(grid, run_config(values), progress=progress, roster=Roster(place.server))
    write_curves(path)
