"""Flower's SuperNode, whose Runtime API only the device's owner can reach.

Flower serves that API on a TCP port, where every user of the same machine could take a task: read
its message, and answer it in the device's name. Here it is served on a unix socket, in a folder
that its owner alone may enter. Nothing of an app is started by the SuperNode: client/fork_server
takes its tasks.
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
    """A module of Flower's of which parts are to be replaced.

    Raises:
        SystemExit: it lacks one of them: in another version, what was replaced may live elsewhere
            and go on unseen, so nothing may start.
    """
    module = importlib.import_module(name)
    if missing := [attribute for attribute in attributes if not hasattr(module, attribute)]:
        raise SystemExit(
            f"fedhead does not start with this version of flwr: {name} has no {missing[0]}, so a "
            "server's code could not be kept out"
        )
    return module


class SocketClient(RuntimeHttpClient):
    """Reaches the Runtime API at the unix socket that takes the place of an address."""

    def __init__(self, base_url: str, **options: Any) -> None:
        socket = base_url.removeprefix("http://")
        super().__init__("http://supernode", **options)
        self._client = httpx.Client(
            transport=httpx.HTTPTransport(uds=socket), timeout=self._client.timeout
        )


def note_refusal(response: httpx.Response, file: Path) -> None:
    """Keep what the server says when it refuses something, for the device's owner to read."""
    if response.is_client_error:
        said = f"{response.status_code} {one_line(response.text)}"
        write_atomic(file, said.encode(), durable=False)


def main() -> None:
    """Be ``flower-supernode``.

    Its arguments: the socket, a file that gets the server's last refusal, and Flower's own.
    """
    socket, refused, *arguments = sys.argv[1:]
    cli = flowers(
        "flwr.supernode.cli.flower_supernode",
        "uvicorn", "_start_supernode_http_api", "flower_supernode",
    )  # fmt: skip
    connection = flowers("flwr.supernode.fleet_http_connection", "FleetHttpClient")

    class OwnersConfig(uvicorn.Config):
        """Listens on the socket, whatever port Flower names."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options, uds=socket)

    class TellingClient(connection.FleetHttpClient):  # type: ignore[misc,name-defined]
        """Keeps what the server said last when it refused something: Flower may end without."""

        def _unary_unary(self, **options: Any) -> Any:
            try:
                return super()._unary_unary(**options)
            except httpx.HTTPStatusError as exc:
                note_refusal(exc.response, Path(refused))
                raise

    # Whatever else Flower may ask of uvicorn is an error, and no open port.
    cli.uvicorn = SimpleNamespace(Config=OwnersConfig, Server=uvicorn.Server)  # type: ignore[attr-defined]
    connection.FleetHttpClient = TellingClient  # type: ignore[attr-defined]
    sys.argv = ["flower-supernode", "--isolation", "process", *arguments]
    cli.flower_supernode()


if __name__ == "__main__":
    main()
