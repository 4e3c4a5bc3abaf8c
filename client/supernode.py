"""Flower's SuperNode with a Runtime API that only the device's owner can reach.

Flower serves that API on a TCP port. There, every user of the machine could take a task, read its
message and answer in the device's name. Here, the API is served on a unix socket in a folder that
only its owner may enter. The SuperNode starts no part of an app: client/fork_server takes its
tasks.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import uvicorn
from flwr.supercore.runtime import RuntimeHttpClient

from common.files import write_atomic
from common.words import one_line

__all__ = ["SocketClient", "flowers", "note_refusal"]


def flowers(name: str, *attributes: str) -> ModuleType:
    """A module of Flower's in which some attributes are to be replaced.

    Raises:
        SystemExit: an attribute is missing. In such a version of Flower the replaced code may be
            elsewhere and still run, so nothing may start.
    """
    module = importlib.import_module(name)
    if missing := [attribute for attribute in attributes if not hasattr(module, attribute)]:
        raise SystemExit(
            f"fedhead does not start with this version of flwr: {name} has no {missing[0]}, so it "
            "could not keep out a server's code"
        )
    return module


class SocketClient(RuntimeHttpClient):
    """Reaches the Runtime API at a unix socket, which is given instead of an address."""

    def __init__(self, base_url: str, **options: Any) -> None:
        socket = base_url.removeprefix("http://")
        super().__init__("http://supernode", **options)
        self._client = httpx.Client(
            transport=httpx.HTTPTransport(uds=socket), timeout=self._client.timeout
        )


def note_refusal(response: httpx.Response, file: Path) -> None:
    """Write the server's refusal to a file, for the device's owner to read."""
    if response.is_client_error:
        said = f"{response.status_code} {one_line(response.text)}"
        write_atomic(file, said.encode(), durable=False)


def main() -> None:
    """Run ``flower-supernode``.

    Arguments: the socket, a file for the server's last refusal, and then Flower's arguments.
    """
    socket, refused, *arguments = sys.argv[1:]
    cli = flowers(
        "flwr.supernode.cli.flower_supernode",
        "uvicorn", "_start_supernode_http_api", "flower_supernode",
    )  # fmt: skip
    connection = flowers("flwr.supernode.fleet_http_connection", "FleetHttpClient")

    class OwnersConfig(uvicorn.Config):
        """Listens on the socket, whatever port Flower gives."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options, uds=socket)

    class TellingClient(connection.FleetHttpClient):  # type: ignore[misc,name-defined]
        """Writes the server's last refusal to a file, because Flower may end without saying it."""

        def _unary_unary(self, **options: Any) -> Any:
            try:
                return super()._unary_unary(**options)
            except httpx.HTTPStatusError as exc:
                note_refusal(exc.response, Path(refused))
                raise

    # Any other use of uvicorn by Flower is an error instead of an open port.
    cli.uvicorn = SimpleNamespace(Config=OwnersConfig, Server=uvicorn.Server)  # type: ignore[attr-defined]
    connection.FleetHttpClient = TellingClient  # type: ignore[attr-defined]
    sys.argv = ["flower-supernode", "--isolation", "process", *arguments]
    cli.flower_supernode()


if __name__ == "__main__":
    main()
