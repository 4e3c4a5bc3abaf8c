"""Runs the installed ServerApp in Flower's ServerApp process, whatever the run's bundle holds.

Only the bundle's run config is used, and it is read as data: nothing is unpacked or imported. The
deployment, not the run, decides which devices are registered and which signatures count.
"""

from __future__ import annotations

import importlib
import io
import tomllib
import zipfile
import zlib
from pathlib import Path
from typing import Any

from common.bundle import check_claim
from common.errors import RunError
from simulations.deploy.trust import signing_state

__all__ = ["of_deployment", "read_bundle", "use_installed"]

_MOST_BYTES = 1 << 20  # of an unpacked pyproject.toml


def use_installed(server: Path) -> None:
    """Replace the functions by which Flower installs and loads an app.

    Args:
        server: the deployment's server folder.

    Raises:
        RunError: this version of Flower has no such function, so ours would not be called.
    """
    from flwr.common.config import flatten_dict, fuse_dicts
    from flwr.server.run_serverapp import run

    module = importlib.import_module("flwr.superlink.runtime.run_serverapp")
    bundle: dict[str, Any] = {}

    def install_from_fab(content: bytes, **_: object) -> None:
        bundle.update(read_bundle(content))
        check_claim(f"{bundle['publisher']}/{bundle['name']}", bundle["version"])

    def run_installed(*, grid: Any, context: Any, **_: object) -> Any:
        from server.app import app

        return run(grid, context, server_app_dir="", loaded_server_app=app)

    def refuse(*_: object, **__: object) -> None:
        raise RunError("nothing is installed at run time")

    ours = {
        "install_from_fab": install_from_fab,
        "get_fab_metadata": lambda _: ("", ""),
        "get_project_dir": lambda *_: Path(),
        "get_project_config": lambda _: {
            "tool": {"flwr": {"app": {"components": {"serverapp": "the installed one"}}}}
        },
        "get_fused_config_from_dir": lambda _, overrides: (
            fuse_dicts(flatten_dict(bundle["config"]), overrides) | of_deployment(server)
        ),
        "install_app_dependencies": refuse,
        "run_": run_installed,
    }
    for name, function in ours.items():
        if not hasattr(module, name):
            raise RunError(
                f"this version of flwr is not supported: {module.__name__} has no {name}"
            )
        setattr(module, name, function)


def of_deployment(server: Path) -> dict[str, str]:
    """The values of the run config that the deployment sets, whatever the run's own values are.

    Raises:
        SignatureError: the trusted keys cannot be used.
    """
    from simulations.deploy.signing import backbones_of

    signed = str(backbones_of(server)) if signing_state(server).keys else ""
    return {"deployment": str(server), "backbones": signed}


def read_bundle(content: bytes) -> dict[str, Any]:
    """A bundle's own publisher, name, version and config.

    Raises:
        RunError: it does not have them.
    """
    try:
        with (
            zipfile.ZipFile(io.BytesIO(content)) as archive,
            archive.open("pyproject.toml") as file,
        ):
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise ValueError(f"pyproject.toml has more than {_MOST_BYTES} bytes")
        project = tomllib.loads(text.decode())
        app = project["tool"]["flwr"]["app"]
        said = {
            "publisher": app["publisher"],
            "name": project["project"]["name"],
            "version": project["project"]["version"],
            "config": app.get("config", {}),
        }
    except (
        *(ValueError, LookupError, TypeError, RuntimeError, EOFError),
        *(zipfile.BadZipFile, zlib.error),
    ) as exc:
        raise RunError(f"the run's bundle cannot be read: {exc}") from exc
    return said
