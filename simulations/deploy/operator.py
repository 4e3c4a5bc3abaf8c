"""An operator's requests to a deployment's SuperLink: list, register and unregister devices.

They use Flower's API for operators, at the port that needs the operator's secret. They need only
the server's folder and a running ``fedhead serve``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from common.errors import RunError
from common.files import read_private, write_atomic
from common.identity import client_of_node
from server.round.roster import CLIENT, client_file
from simulations.deploy.device_keys import admitted_keys, put_out
from simulations.deploy.settings import OPERATORS_HOST, endpoint, operator_secret, read_server

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

__all__ = [
    "SECRET_HEADER",
    "Control",
    "Node",
    "OperatorSecret",
    "control",
    "door",
    "read_secret",
    "read_secret_file",
    "register_folder",
]

# Not Authorization, because Flower's processes use that header for other things.
SECRET_HEADER = "fedhead-operator-secret"  # noqa: S105 - a name
_SECRET = re.compile(r"[!-~]{32,}")


@dataclass(frozen=True)
class Node:
    """A device as the SuperLink knows it.

    Attributes:
        name: the name of its key's file when it was registered.
        node_id: Flower's node id.
        public_key: in the form of device_keys' ``comparable``.
        status: registered (and never seen), online, offline or unregistered.
        activated: when it last connected; None: never.
        deactivated: when it last disconnected; None: never.
        unregistered: when its key was unregistered; None: it is registered.
    """

    name: str
    node_id: int
    public_key: bytes
    status: str
    activated: datetime | None
    deactivated: datetime | None
    unregistered: datetime | None


def door(server: Path) -> str:
    """HOST:PORT of the operators' port of the server with this folder."""
    return endpoint(OPERATORS_HOST, read_server(server).operator_port)


def read_secret(server: Path) -> str:
    """The secret in a server's folder.

    Raises:
        RunError: it is missing, or users other than its owner can read it.
    """
    return read_secret_file(operator_secret(server))


def read_secret_file(file: Path) -> str:
    """The secret in a file.

    Raises:
        RunError: it is missing or too short, or users other than its owner can read it.
    """
    try:
        secret = read_private(file).decode(errors="replace").strip()
    except FileNotFoundError as exc:
        raise RunError(f"{file} is missing: fedhead deploy writes it") from exc
    except OSError as exc:
        raise RunError(f"{file}: {exc.strerror}") from exc
    if not _SECRET.fullmatch(secret):
        raise RunError(
            f"{file} is not a secret, expected 32 or more letters and digits: remove it, and "
            "fedhead deploy writes a new one"
        )
    return secret


class OperatorSecret:
    """Adds the operator's secret to the requests of a Flower client."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Add the secret to a request."""
        context.request.headers[SECRET_HEADER] = self._secret
        return call_next(context)


@contextmanager
def control(server: Path) -> Iterator[Control]:
    """Flower's API for operators, at the server with this folder.

    Raises:
        ConfigError, RunError: a file in the folder is missing or wrong.
    """
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

    address = door(server)
    with ControlHttpClient.from_server_address(
        address,
        insecure=False,
        root_certificates=(server / "ca.crt").read_bytes(),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="fedhead"),
            OperatorSecret(read_secret(server)),
        ],
    ) as client:
        yield Control(client, address)


class Control:
    """The devices that are registered at a SuperLink.

    Args:
        client: Flower's client.
        address: the address that it connects to, for errors.
    """

    def __init__(self, client: ControlHttpClient, address: str) -> None:
        self._client, self._address = client, address

    def nodes(self) -> list[Node]:
        """All devices that are or were registered.

        Raises:
            RunError: the server does not answer.
        """
        from flwr.proto.control_pb2 import ListNodesRequest

        with self._told():
            answer = self._client.ListNodes(ListNodesRequest())
        return [
            Node(
                name=node.name,
                node_id=node.node_id,
                public_key=node.public_key,
                status=node.status,
                activated=_time(node.last_activated_at),
                deactivated=_time(node.last_deactivated_at),
                unregistered=_time(node.unregistered_at),
            )
            for node in answer.nodes_info
        ]

    def register(self, name: str, public_key: bytes) -> int:
        """Register a device.

        Args:
            name: the device's name.
            public_key: in the form of device_keys' ``comparable``.

        Returns:
            Flower's node id of it.

        Raises:
            RunError: the server does not answer, or refuses the key.
        """
        from flwr.proto.control_pb2 import RegisterNodeRequest

        with self._told():
            request = RegisterNodeRequest(public_key=public_key, name=name)
            return self._client.RegisterNode(request).node_id

    def unregister(self, node_id: int) -> None:
        """Unregister a device: its SuperNode is refused from its next call on.

        Raises:
            RunError: the server does not answer, or does not know the node.
        """
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        with self._told():
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn failures inside the block into one-line errors."""
        from flwr.supercore.error import FlowerError

        try:
            yield
        except httpx.HTTPStatusError as exc:
            error = FlowerError.from_json(exc.response.text)
            reason = error.message if error else f"status {exc.response.status_code}"
            raise RunError(f"the server at {self._address} refuses: {reason}") from exc
        except httpx.HTTPError as exc:
            raise RunError(
                f"the server at {self._address} does not answer: {exc}; is fedhead serve running?"
            ) from exc


def register_folder(api: Control, server: Path, say: Callable[[str], None]) -> dict[str, int]:
    """Register exactly the devices whose keys are in a server's folder.

    Args:
        api: the server's API.
        server: its folder; ``devices/NAME.client`` gives runs the names of devices.
        say: called with a line for each change and for each device that is shut out.

    Returns:
        Flower's node ids by device name.

    Raises:
        RunError: a file is not a key, and nothing was changed; or the server does not answer.
    """
    folder = server / "devices"
    # In this order, because a key that another process registers meanwhile was in the folder first.
    known = {node.public_key: node for node in api.nodes()}
    keys = admitted_keys(server)
    for key, node in known.items():
        # Flower never accepts a key again that it has unregistered.
        if node.status == "unregistered" or key not in keys.values():
            put_out(server, node.name, key)
        if node.status != "unregistered" and key not in keys.values():
            api.unregister(node.node_id)
            say(f"{node.name} is shut out: its key is no longer in {folder}")
    nodes = {}
    for name, key in admitted_keys(server).items():
        if key in known:
            nodes[name] = known[key].node_id
        else:
            nodes[name] = _register(api, name, key)
            say(f"{name} is registered")
        client = CLIENT.pack({"client": client_of_node(nodes[name])})
        file = client_file(server, name)
        if not file.exists() or file.read_bytes() != client:
            write_atomic(file, client)
    for name in nodes.keys() - admitted_keys(server):
        api.unregister(nodes.pop(name))  # revoked while this was under way
    for name in keys.keys() - nodes:
        say(f"{name} stays shut out: its key was revoked; fedhead deploy makes a new one")
    return nodes


def _register(api: Control, name: str, key: bytes) -> int:
    try:
        return api.register(name, key)
    except RunError:
        # Another process may have been faster.
        for node in api.nodes():
            if node.public_key == key and node.status != "unregistered":
                return node.node_id
        raise


def _time(text: str) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
