"""One authority follows another: who trusts whom at each step, and after a kill between any two."""

from __future__ import annotations

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from common import files
from common.errors import ConfigError, RunError
from simulations.deploy import MOST_DAYS
from simulations.deploy.authority import (
    drop_old,
    expiries,
    expiry_warnings,
    follow,
    sign_server,
    stage,
)
from simulations.deploy.certificates import addresses_of, certificates_in
from simulations.deploy.folder import write_deployment
from simulations.deploy.presented import Presented


@pytest.fixture
def garden(tmp_path: Path) -> Path:
    folder = tmp_path / "garden"
    write_deployment(folder, addresses=["fed.example.org"], devices=["kitchen"], days=30)
    return folder


def trusts(authorities: bytes, server: Path, there: ssl.SSLContext | None = None) -> bool:
    """Whether a TLS client with these authorities alone would go on with the server."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=authorities.decode("ascii"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python has it from 3.13 on
    a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = client.wrap_bio(a, b, server_hostname="fed.example.org")
    other = (there or shown(server)).wrap_bio(b, a, server_side=True)
    for _ in range(5):
        for side in (here, other):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                return False
    return here.version() is not None


def shown(server: Path) -> ssl.SSLContext:
    """What a server shows that has just started."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server / "server.crt", server / "server.key")
    return context


def test_no_device_loses_the_server_while_one_authority_follows_another(garden: Path) -> None:
    server, device = garden / "server", garden / "devices" / "kitchen"
    old = (device / "ca.crt").read_bytes()
    assert trusts(old, server)

    follow(garden, 30)
    assert stage(garden) == "both trusted"
    both = (server / "ca.crt").read_bytes()
    assert (device / "ca.crt").read_bytes() == both
    assert both.startswith(old)
    new = both.removeprefix(old)
    # It has the old list still, the new one already, or will have the last one.
    assert [trusts(authorities, server) for authorities in (old, both, new)] == [True] * 3

    drop_old(garden)
    assert stage(garden) == "settled"
    assert (server / "ca.crt").read_bytes() == (device / "ca.crt").read_bytes() == new
    assert [trusts(authorities, server) for authorities in (old, both, new)] == [False, True, True]
    assert not (garden / "authority" / "next").exists()
    sign_server(garden, ["fed.example.org"], 30)  # with the key that belongs to it
    assert trusts(new, server)


def test_the_key_that_follows_is_its_owners_alone(garden: Path) -> None:
    old = (garden / "authority" / "ca.key").read_bytes()
    follow(garden, 30)
    key = garden / "authority" / "next" / "ca.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    new = key.read_bytes()
    assert new != old
    drop_old(garden)
    assert (garden / "authority" / "ca.key").read_bytes() == new
    assert stat.S_IMODE((garden / "authority" / "ca.key").stat().st_mode) == 0o600


def test_a_running_server_shows_what_changes_and_its_own_processes_still_trust_it(
    garden: Path,
) -> None:
    server = garden / "server"
    old = (server / "ca.crt").read_bytes()
    devices, operators = shown(server), shown(server)
    presented = Presented(server, devices, operators)
    assert not presented.refresh()
    follow(garden, 30)
    assert presented.refresh()
    assert not presented.refresh()
    new = (server / "ca.crt").read_bytes().removeprefix(old)
    drop_old(garden)
    sign_server(garden, ["fed.example.org"], 30)
    assert presented.refresh()
    # Flower's processes beside the server began with the old list, devices have the new one.
    assert [trusts(each, server, operators) for each in (old, new)] == [True, True]
    assert [trusts(each, server, devices) for each in (old, new)] == [False, True]
    (server / "server.crt").write_text("half written")
    with pytest.raises(RunError, match=r"server\.crt cannot be read as a certificate"):
        presented.refresh()
    assert not presented.refresh()
    assert trusts(new, server, devices)


class Killed(BaseException):
    pass


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The process dies just before its nth file or folder is put in place."""
    counted = 0
    kinds = {name: getattr(Path, name) for name in ("replace", "rename", "hardlink_to", "unlink")}

    def counting(name):
        def step(self, *args, **options):
            nonlocal counted
            if self.name.endswith(".tmp") and name == "unlink":
                return kinds[name](self, *args, **options)
            counted += 1
            if counted == number:
                raise Killed
            return kinds[name](self, *args, **options)

        return step

    for name in kinds:
        monkeypatch.setattr(Path, name, counting(name))


@pytest.mark.parametrize("number", range(1, 7))
def test_a_renewal_that_is_killed_anywhere_is_completed_by_the_next(
    garden: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    server = garden / "server"
    lists = [(server / "ca.crt").read_bytes()]

    def step(action, wanted) -> bool:
        with monkeypatch.context() as patch:
            kill_at(patch, number)
            try:
                action()
            except Killed:
                killed = True
            else:
                killed = False
        # Whoever followed the server's list so far is still let in.
        lists.append((server / "ca.crt").read_bytes())
        assert [trusts(authorities, server) for authorities in lists[-2:]] == [True, True]
        if stage(garden) != wanted:
            assert killed
            action()
        assert stage(garden) == wanted
        lists.append((server / "ca.crt").read_bytes())
        assert trusts(lists[-1], server)
        return killed

    first = step(lambda: follow(garden, 30), "both trusted")
    second = step(lambda: drop_old(garden), "settled")
    assert first or second
    sign_server(garden, ["fed.example.org"], 30)
    follow(garden, 30)  # and it can go on from there
    assert stage(garden) == "both trusted"


def test_a_deployment_whose_first_writing_was_killed_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 30):
        folder = tmp_path / str(number)

        def write(folder: Path = folder) -> None:
            write_deployment(folder, addresses=["fed.example.org"], devices=["kitchen"])

        with monkeypatch.context() as patch:
            kill_at(patch, number)
            try:
                write()
                break
            except Killed:
                pass
        write()
        assert trusts((folder / "devices" / "kitchen" / "ca.crt").read_bytes(), folder / "server")
    assert number > 12


def test_the_authoritys_key_may_be_offline_until_it_is_to_sign(garden: Path) -> None:
    key = garden / "authority" / "ca.key"
    away = key.rename(garden.parent / "ca.key")
    write_deployment(garden, devices=["hall"])
    for signing in (
        lambda: sign_server(garden, ["fed.example.org"], 30),
        lambda: follow(garden, 30),
        lambda: write_deployment(garden, devices=["hall"], addresses=["other.example.org"]),
    ):
        with pytest.raises(RunError, match=r"authority/ca\.key is missing .* put it back"):
            signing()
    assert stage(garden) == "settled"
    away.rename(key)
    follow(garden, 30)
    away = (garden / "authority" / "next" / "ca.key").rename(away)
    with pytest.raises(RunError, match=r"next/ca\.key is missing .* put it back"):
        sign_server(garden, ["fed.example.org"], 30)
    drop_old(garden)
    assert not key.exists()  # the old one's is of no use any more
    away.rename(key)
    sign_server(garden, ["fed.example.org"], 30)


def test_a_new_address_joins_the_old_ones_and_who_uses_which_is_said(garden: Path) -> None:
    certificate = garden / "server" / "server.crt"
    before = certificate.read_bytes()
    assert write_deployment(garden, devices=["hall"]) == []
    assert certificate.read_bytes() == before  # nothing to certify

    notes = write_deployment(garden, devices=["cellar"], addresses=["10.0.0.7"])
    names = addresses_of(certificate)
    assert names == ["10.0.0.7", "fed.example.org", "127.0.0.1"]
    assert notes == ["10.0.0.7 is used by cellar", "fed.example.org is used by hall, kitchen"]
    assert 'server = "10.0.0.7:9092"' in (garden / "devices/cellar/device.toml").read_text()

    (note,) = write_deployment(garden, devices=["cellar"], dropped=["fed.example.org"])[1:]
    assert note == (
        "fed.example.org is used by hall, kitchen, which is no longer in the server's certificate"
    )
    assert "fed.example.org" not in addresses_of(certificate)
    with pytest.raises(ConfigError, match="an address of the server is missing"):
        write_deployment(garden, devices=["attic"], dropped=["10.0.0.7"])
    assert "10.0.0.7" in addresses_of(certificate)


def test_what_ends_within_a_month_is_warned_of(garden: Path) -> None:
    ends = expiries(garden / "server")
    (line,) = expiry_warnings(ends)
    day = format(ends["server's certificate"], "%Y-%m-%d")
    assert line == f"the server's certificate ends on {day}: fedhead fleet DEPLOYMENT renew"
    sign_server(garden, ["fed.example.org"], 32)
    assert expiry_warnings(expiries(garden / "server")) == []
    yesterday = datetime.now(UTC) - timedelta(days=1)
    (line,) = expiry_warnings({"authority": yesterday})
    assert line.startswith(f"the authority ended on {yesterday:%Y-%m-%d}")


def test_a_certificate_ends_no_later_than_its_authority(garden: Path) -> None:
    sign_server(garden, ["fed.example.org"], MOST_DAYS)
    server = certificates_in(garden / "server" / "server.crt")[0]
    authority = certificates_in(garden / "authority" / "ca.crt")[0]
    assert server.not_valid_after_utc == authority.not_valid_after_utc


def test_a_server_cannot_vouch_as_an_authority_does(garden: Path) -> None:
    certificate = certificates_in(garden / "server" / "server.crt")[0]
    basic = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not basic.ca
    assert files.is_empty(garden / "server" / "revoked")
