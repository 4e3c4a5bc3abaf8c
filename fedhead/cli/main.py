"""The command line: ``fedhead run | resume | report | export | predict | info | ...``."""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from common.errors import FedheadError, MissingExtraError
from common.log import OneLine
from common.progress import stage
from common.words import said_of
from fedhead.cli.audit import audit
from fedhead.cli.bench import bench
from fedhead.cli.cache import cache
from fedhead.cli.compare import comparisons
from fedhead.cli.delivery import delivery
from fedhead.cli.deploy import deployments
from fedhead.cli.describe import descriptions
from fedhead.cli.fine_tune import fine_tune
from fedhead.cli.fleet import fleet
from fedhead.cli.fleet_simulate import fleet_simulate
from fedhead.cli.keys import keys
from fedhead.cli.measure import measures
from fedhead.cli.predict import predict
from fedhead.cli.privacy import privacy
from fedhead.cli.probe import probe
from fedhead.cli.publish import publish
from fedhead.cli.runs import runs
from fedhead.cli.terminal import print_error
from fedhead.cli.tune import tune
from fedhead.environment import NOT_ON_DEVICES, prepare_environment

__all__ = ["cli", "main"]

# The commands import heavy packages only when they run, which is after this call.
prepare_environment()

# These run until they are stopped. All others report at least every ten seconds what they do.
_ENDLESS = ("serve", "device", "gateway", "phone", "delivery serve")

cli = typer.Typer(
    name="fedhead",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(version("fedhead"))
        raise typer.Exit


@cli.callback()
def options(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Federated learning of the head of a frozen int8 MobileNet."""


others = typer.Typer()
for command in (audit, probe, fine_tune, tune, predict, publish, cache, fleet_simulate):
    others.command()(command)
for group in (runs, comparisons, descriptions, measures, deployments, others):
    cli.add_typer(group)
for name, group in (
    ("bench", bench), ("delivery", delivery), ("fleet", fleet), ("keys", keys),
    ("privacy", privacy),
):  # fmt: skip
    cli.add_typer(group, name=name)


def _start_log() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(message)s"))
    logger = logging.getLogger("fedhead")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
    # Flower's strategies log each step; fedhead logs one line per round instead.
    logging.getLogger("flwr").setLevel(logging.WARNING)


def _command() -> str:
    words = sys.argv[1:3] if sys.argv[1:2] == ["delivery"] else sys.argv[1:2]
    return " ".join(words)


def main() -> None:
    """Entry point. What a user can fix is one clear line; only a bug is a traceback."""
    _start_log()
    sys.path.append(str(Path.cwd()))  # for a user's own strategies; last, so that it hides nothing
    try:
        with nullcontext() if _command() in _ENDLESS else stage(f"fedhead {_command()} is working"):
            cli()
    except FedheadError as exc:
        print_error(str(exc))
        sys.exit(1)
    except ModuleNotFoundError as exc:
        if exc.name not in NOT_ON_DEVICES:
            raise
        print_error(str(MissingExtraError(exc.name, "simulation", "this command")))
        sys.exit(1)
    except OSError as exc:
        print_error(said_of(exc))
        sys.exit(1)
