"""A device checks in: what the server learns, and whom the device may be told to trust."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from client.delivery.authorities import accept, check_in
from client.delivery.remote import DeliveryInterruptedError, Remote
from common.delivery.identity import Identity
from common.delivery.tokens import revoke_token
from common.errors import DeliveryError
from server.delivery.checkins import CheckIn, check_ins
from server.delivery.limits import Clock
from server.delivery.service import Limits, start
from simulations.deploy.authority import drop_old, follow, sign_server
from simulations.deploy.certificates import certificates_in, vouch, write_authority
from simulations.deploy.folder import write_deployment


class Garden:
    """A deployment whose delivery is served in this process; its one device is kitchen."""

    def __init__(self, folder: Path) -> None:
        write_deployment(folder, addresses=["localhost"], devices=["kitchen"])
        self.folder, self.server = folder, folder / "server"
        self.device = folder.parent / "carried-away"  # deploy no longer reaches it
        (folder / "devices" / "kitchen").rename(self.device)
        self.authorities = self.device / "ca.crt"
        (folder / "devices" / "kitchen").mkdir()
        identity = Identity(*(self.server / n for n in ("server.crt", "server.key", "ca.crt")))
        self.delivery, self.port = start(
            self.server / "delivery",
            address="localhost:0",
            identity=identity,
            limits=Limits(2, 1e9),
            clock=Clock(),
        )

    @property
    def door(self) -> str:
        return f"localhost:{self.port}"

    def check_in(self, *doors: str) -> bool:
        with Remote(
            self.door, authority=self.authorities, token=self.device / "delivery.token"
        ) as remote:
            doors = doors or (self.door,)
            return check_in(remote, self.authorities, doors, app="fedhead 1", in_use={"m.pt": 3})

    def words(self) -> CheckIn:
        return check_ins(self.server / "delivery")["kitchen"]


@pytest.fixture
def garden(tmp_path: Path) -> Iterator[Garden]:
    made = Garden(tmp_path / "garden")
    yield made
    made.delivery.stop(0).wait()


def test_the_server_learns_what_a_device_runs_and_trusts(garden: Garden) -> None:
    assert not garden.check_in()
    words = garden.words()
    digest = hashlib.sha256(garden.authorities.read_bytes()).hexdigest()
    assert (words.app, words.in_use, words.authorities_sha256) == ("fedhead 1", {"m.pt": 3}, digest)
    revoke_token(garden.server / "delivery", "kitchen")
    with pytest.raises(DeliveryError, match="the token is not valid"):
        garden.check_in()


def test_a_device_takes_the_authority_that_follows_and_drops_the_old(garden: Garden) -> None:
    old = garden.authorities.read_bytes()
    follow(garden.folder, 30)  # the running server takes the certificate up
    assert garden.check_in()
    both = garden.authorities.read_bytes()
    assert both == (garden.server / "ca.crt").read_bytes()
    assert garden.words().authorities_sha256 == hashlib.sha256(both).hexdigest()
    assert not garden.check_in()
    drop_old(garden.folder)
    assert garden.check_in()
    assert garden.authorities.read_bytes() == both.removeprefix(old)
    assert not garden.check_in()


def test_a_certificate_is_renewed_under_a_running_server(garden: Garden) -> None:
    sign_server(garden.folder, ["localhost"], 40)
    (garden.server / "server.crt").write_text("half written")
    assert not garden.check_in()  # the one before serves on
    sign_server(garden.folder, ["elsewhere.example.org"], 40)
    with pytest.raises(DeliveryError, match=r"not trusted: .* is for another name"):
        garden.check_in()


def test_an_authority_of_the_servers_own_is_not_taken(garden: Garden, tmp_path: Path) -> None:
    before = garden.authorities.read_bytes()
    write_authority(tmp_path / "ca.key", tmp_path / "ca.crt")
    stranger = (tmp_path / "ca.crt").read_bytes()
    words = vouch((tmp_path / "ca.key", tmp_path / "ca.crt"), tmp_path / "ca.crt")
    served = (garden.server / "server.crt").read_bytes()
    # With the server's own word, and with its certificate as a voucher: neither is an authority's.
    for chain in (b"", words, served):
        (garden.server / "server.crt").write_bytes(served + chain)
        (garden.server / "ca.crt").write_bytes(before + stranger)
        with pytest.raises(DeliveryError, match="no authority that this device trusts has signed"):
            garden.check_in()
        assert garden.authorities.read_bytes() == before


def test_a_list_that_would_shut_the_server_out_is_not_taken(garden: Garden) -> None:
    follow(garden.folder, 30)
    garden.check_in()
    both = garden.authorities.read_bytes()
    old = certificates_in(garden.authorities)[0]
    (garden.server / "server.crt").write_bytes(
        certificates_in(garden.server / "server.crt")[0].public_bytes(Encoding.PEM)
    )
    # A server that hands out the old authority alone, while the new one has signed for it.
    (garden.server / "ca.crt").write_bytes(old.public_bytes(Encoding.PEM))
    with pytest.raises(DeliveryError, match="are refused: localhost:.* would not be trusted"):
        garden.check_in()
    assert garden.authorities.read_bytes() == both


def test_all_doors_are_tried_before_a_list_is_taken(garden: Garden) -> None:
    before = garden.authorities.read_bytes()
    follow(garden.folder, 30)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(DeliveryInterruptedError, match="wait until localhost:.* can be reached"):
        garden.check_in(garden.door, f"localhost:{port}")
    assert garden.authorities.read_bytes() == before


@pytest.mark.parametrize("offered", [b"", b"junk", b"-----BEGIN CERTIFICATE-----\nAA\n"])
def test_junk_is_no_list_of_authorities(garden: Garden, offered: bytes) -> None:
    with pytest.raises(DeliveryError, match="not a list of authorities"):
        accept(offered, b"", garden.authorities.read_bytes())


def test_a_list_with_words_around_it_that_tls_cannot_read_is_not_taken(garden: Garden) -> None:
    trusted = garden.authorities.read_bytes()
    with pytest.raises(DeliveryError, match="not a list of authorities"):
        accept("of the Küche\n".encode() + trusted, b"", trusted)


@pytest.mark.parametrize(
    ("app", "digest", "in_use"),
    [
        ("\x1b[2J", "0" * 64, {}),
        ("a" * 65, "0" * 64, {}),
        ("fedhead 1", "0" * 63, {}),
        ("fedhead 1", "0" * 64, {"../m": 1}),
        ("fedhead 1", "0" * 64, {f"m{i}": 1 for i in range(21)}),
    ],
)
def test_words_that_cannot_be_are_not_kept(
    garden: Garden, app: str, digest: str, in_use: dict[str, int]
) -> None:
    token = garden.device / "delivery.token"
    with (
        Remote(garden.door, authority=garden.authorities, token=token) as remote,
        pytest.raises(DeliveryError, match=r"expected|cannot name"),
    ):
        remote.check_in(app, digest, in_use)
    assert check_ins(garden.server / "delivery") == {}
