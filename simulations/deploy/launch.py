"""Starts Flower's SuperLink and SuperNode from a deployment's folders.

It is thin on purpose: it prints each command with Flower's options, which Flower documents.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import tomli_w

from common.errors import RunError
from simulations.deploy.authority import expiries
from simulations.deploy.checking_in import CheckingIn
from simulations.deploy.device_keys import admitted_keys
from simulations.deploy.handshake import obstacle
from simulations.deploy.last_run import remember_run
from simulations.deploy.operator import door, read_secret
from simulations.deploy.processes import (
    Polled,
    alone,
    first_end,
    is_held,
    own_folder,
    run,
    running,
    socket_in,
    terminable,
)
from simulations.deploy.settings import (
    OPERATORS_HOST,
    inside,
    read_device,
    read_server,
    server_folder,
)
from simulations.deploy.standin import install, operator_environment
from simulations.deploy.trust import signing_state, trusted_of
from simulations.engines.flower import flower_environment, run_app

__all__ = [
    "check_served",
    "connection",
    "device_command",
    "run_deployed",
    "run_device",
    "serve",
    "superlink_command",
]

Say = Callable[[str], None]

_FIRST_PAUSE_SECONDS = 2.0
_LONGEST_PAUSE_SECONDS = 60.0


def superlink_command(server: Path) -> list[str]:
    """The command that serves a server's folder: our module with Flower's options."""
    settings = read_server(server)
    return [
        sys.executable, "-P", "-m", "simulations.deploy.superlink", str(server),
        "--ssl-certfile", _there(server / "server.crt"),
        "--ssl-keyfile", _there(server / "server.key"),
        "--ssl-ca-certfile", _there(server / "ca.crt"),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        "--database", str(server / "superlink.db"),
        "--host", OPERATORS_HOST,
        "--port", str(settings.operator_port),
    ]  # fmt: skip


def _written(value: object) -> str:
    """As TOML, without a quote inside: Flower's reader would take it for the text's end."""
    if not isinstance(value, str):
        return json.dumps(value)
    inside = json.dumps(value, ensure_ascii=False)[1:-1]
    return '"{}"'.format(inside.replace(r"\"", r"\u0022"))


def device_command(device: Path, own: Path) -> list[str]:
    """The command of a device's SuperNode, with its socket in a folder of its own."""
    settings = read_device(device)
    node_config = {
        "data": f"folder:{inside(device, settings.data)}",
        "state": str(inside(device, settings.state)),
        "max-examples": settings.max_examples,
        "max-threads": settings.max_threads,
        "min-interval-seconds": settings.min_interval_seconds,
        "allow": settings.allow,
    }
    if signing_state(device).keys:
        node_config["trusted"] = str(trusted_of(device))
    pairs = [f"{key}={_written(value)}" for key, value in node_config.items()]
    return [
        sys.executable, "-P", "-m", "client.supernode", socket_in(own), str(own / "refused"),
        "--superlink", settings.server,
        "--root-certificates", _there(device / "ca.crt"),
        "--auth-supernode-private-key", _there(device / "device.key"),
        "--node-config", " ".join(pairs),
    ]  # fmt: skip


def serve(server: Path, say: Say) -> int:
    """Run a SuperLink until it ends, with the devices' keys registered.

    Args:
        server: the deployment's server folder.
        say: called with lines for the person who started it.

    Returns:
        The exit code of a SuperLink that ended by itself.

    Raises:
        ConfigError, RunError: a file is missing or wrong, or the SuperLink does not start.
        KeyboardInterrupt: it was interrupted.
    """
    server = server.resolve()
    environment = flower_environment() | {"FLWR_HOME": str(server / "flower")}
    # Known problems are reported before anything starts.
    read_secret(server)
    if (end := expiries(server)["server's certificate"]) < datetime.now(UTC):
        command = f"fedhead fleet {shlex.quote(str(server.parent))} renew"
        raise RunError(f"{server / 'server.crt'} ended on {end:%Y-%m-%d}: {command}")
    admitted_keys(server)
    signing_state(server)
    with terminable(), alone(server, "fedhead serve"):
        return run(superlink_command(server), environment, say)


def run_device(device: Path, say: Say) -> NoReturn:
    """Run a SuperNode until it is interrupted.

    Flower's SuperNode reconnects by itself after it was let in once. But it gives up if it is not
    let in: before its key is registered, or while the server has no valid certificate. So it is
    started again.

    Raises:
        ConfigError, RunError: a file is missing or wrong, or the device runs already.
        KeyboardInterrupt: it was interrupted.
    """
    device = device.resolve()
    settings = read_device(device)
    if without := _without_images(inside(device, settings.data)):
        say(f"warning: {without}: this device cannot take part in a run yet")
    environment = flower_environment() | {
        "FLWR_HOME": str(inside(device, settings.state) / "flower"),
        "OMP_NUM_THREADS": str(settings.max_threads),
    }
    with (
        terminable(),
        alone(device, "fedhead device"),
        own_folder("device") as own,
        CheckingIn(device, environment, own / "check-in.log", say) as checking_in,
    ):
        pause = _FIRST_PAUSE_SECONDS
        answers = [sys.executable, "-P", "-m", "client.fork_server", socket_in(own)]
        while True:
            # It imports while the SuperNode starts, and only once even if the SuperNode is refused.
            with running(answers, environment) as answering:
                while answering.poll() is None:
                    started = time.monotonic()
                    checking_in.remember()
                    arguments = device_command(device, own)
                    code = _run_node(arguments, environment, say, answering, checking_in)
                    if checking_in.poll() is not None:
                        say("the trusted authorities changed: Flower's SuperNode starts again")
                        continue
                    if time.monotonic() - started > _LONGEST_PAUSE_SECONDS:
                        pause = _FIRST_PAUSE_SECONDS  # it had been let in before
                    why = obstacle(settings.server, device / "ca.crt", _refused(own))
                    if answering.poll() is not None:
                        why = f"the process that answers messages ended with {answering.returncode}"
                    say(f"Flower's SuperNode ended with {code}: {why}. Again in {pause:g} s.")
                    time.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _without_images(folder: Path) -> str:
    """What is wrong with a device's folder of images if it has none; empty: it holds files.

    Whether these can be read shows in a run: the process that watches over a device does without
    the packages that read images.
    """
    if not folder.is_dir():
        return f"{folder} is missing, expected a folder with one sub-folder of images per class"
    if not any(files for _, _, files in os.walk(folder)):
        return f"{folder} is empty, expected one sub-folder of images per class in it"
    return ""


def _run_node(
    arguments: Sequence[str], environment: Mapping[str, str], say: Say, *others: Polled
) -> int:
    """Run a SuperNode until it or one of the other processes ends."""
    say(f"$ {shlex.join(arguments)}")
    with running(arguments, environment) as node:
        first_end(node, *others)
    return node.wait()


def _refused(own: Path) -> str:
    """The server's last refusal of the device; empty: none."""
    file = own / "refused"
    said = file.read_text() if file.exists() else ""
    file.unlink(missing_ok=True)
    return said


def check_served(deployment: Path) -> None:
    """Check that a deployment's server runs on this machine, before a run folder is made.

    Raises:
        ConfigError, RunError: it does not run, or there is no deployment.
    """
    server = server_folder(deployment)
    read_secret(server)
    if not is_held(server):
        command = f"fedhead serve {shlex.quote(str(server))}"
        raise RunError(f"no server of {deployment} runs here: {command}")


def run_deployed(
    path: Path, deployment: Path, *, health: str = "", key: Path | None = None
) -> dict[str, Any]:
    """Run or resume a run folder's experiment on a deployment's devices.

    Args:
        path: the run folder.
        deployment: the folder that ``fedhead deploy`` wrote, or its server's folder.
        health: HOST:PORT for health checks meanwhile; empty: none.
        key: key that signs the backbone if it is not signed yet; None: nothing is signed.

    Returns:
        The run's closing figures.

    Raises:
        SignatureError: the devices take signed backbones only, and the run's is not.
        ConfigError, RunError: there is no deployment, or the run did not complete.
    """
    # Imported here: a device's watching process needs neither torch nor the server's packages.
    from server.record.runfolder import RunFolder
    from simulations.deploy.phone_files import phone_files
    from simulations.deploy.signing import signed_backbones, signer
    from simulations.run import open_run

    config, server = open_run(path), server_folder(deployment)
    RunFolder(path, config).bind_clients(simulated=False)
    sign = signer(server, key=key) if key else None  # once: it may ask for the key's passphrase
    signed_backbones(config, server, key, path, sign)
    phone_files(config, server, sign, path)
    with connection(deployment) as environment:
        remember_run(server, path)
        return run_app(path, environment, health=health)


@contextmanager
def connection(deployment: Path) -> Iterator[dict[str, str]]:
    """An environment in which ``flwr`` commands reach a deployment's SuperLink as its operator.

    Raises:
        ConfigError, RunError: there is no deployment, or its operator's secret cannot be read.
    """
    server = server_folder(deployment)
    read_secret(server)
    link = {"address": door(server), "root-certificates": _there(server / "ca.crt")}
    with own_folder("flower") as home:
        content = {"superlink": {"default": "fedhead", "fedhead": link}}
        (home / "config.toml").write_text(tomli_w.dumps(content))
        (home / "bin").mkdir()
        environment = flower_environment() | operator_environment(server)
        environment["PATH"] = install(home / "bin", environment["PATH"], ["flwr"])
        yield environment | {"FLWR_HOME": str(home)}


def _there(path: Path) -> str:
    if not path.is_file():
        raise RunError(f"{path} is missing: fedhead deploy writes it")
    return str(path)
