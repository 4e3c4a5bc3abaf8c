"""What a device's owner is told when the server does not let the device in."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from client.supernode import note_refusal
from simulations.deploy.folder import write_deployment
from simulations.deploy.handshake import obstacle


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("d") / "d"
    write_deployment(folder, addresses=["localhost"], devices=["kitchen"], days=1)
    return folder


@pytest.fixture
def address(deployed: Path) -> Iterator[str]:
    """A server with the deployment's certificate, which only shakes hands."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(deployed / "server" / "server.crt", deployed / "server" / "server.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            link, _ = listener.accept()
            with context.wrap_socket(link, server_side=True, suppress_ragged_eofs=True):
                pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"localhost:{listener.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        (
            "401 ",
            r"localhost:\d+ does not know this device: is its key registered and not "
            r"revoked, and is the clock right\? It says \d{4}-\d\d-\d\d \d\d:\d\d UTC",
        ),
        (
            '412 {"code":2004,"detail":"Failed to activate SuperNode."}',
            r"localhost:\d+ still counts this device as connected: .* process uses its key",
        ),
        ("404 Something\nnew", r"localhost:\d+ says: 404 Something new"),
        ("", r"localhost:\d+ can be reached"),
    ],
)
def test_a_refusal_is_told_as_what_it_is(
    deployed: Path, address: str, said: str, hint: str
) -> None:
    authority = deployed / "devices" / "kitchen" / "ca.crt"
    assert re.fullmatch(hint, obstacle(address, authority, said))


@pytest.mark.parametrize("noted", [True, False])
def test_a_servers_words_are_short_and_move_no_cursor(
    deployed: Path, address: str, tmp_path: Path, noted: bool
) -> None:
    said = "\x1b[2J\x1b]0;x\x07\r\nkitchen: all is well\u202e\x9b1A" + "x" * 1_000_000
    if noted:
        file = tmp_path / "refused"
        note_refusal(httpx.Response(404, text=said), file)
        assert file.stat().st_size < 1000
        said = file.read_text()
    told = obstacle(address, deployed / "devices" / "kitchen" / "ca.crt", said)
    assert told.isprintable()
    assert len(told) < 500
    assert "kitchen: all is well" in told


def test_a_server_that_is_not_there_is_told(deployed: Path) -> None:
    authority = deployed / "devices" / "kitchen" / "ca.crt"
    assert "localhost:1 cannot be reached" in obstacle("localhost:1", authority, "401")
