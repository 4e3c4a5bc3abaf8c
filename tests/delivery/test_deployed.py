"""Deployments give each device its token, and a second ``deploy`` takes nothing back."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from common.delivery.tokens import device_of, revoke_token
from common.errors import ConfigError, DeliveryError
from simulations.deploy.folder import Ports, write_deployment
from simulations.deploy.settings import delivery_of, endpoint, read_device, read_server


def deploy(
    folder: Path, *devices: str, address: str = "localhost", ports: Ports | None = None
) -> Path:
    ports = ports or Ports()
    write_deployment(folder, addresses=[address], devices=devices, days=1, ports=ports)
    return folder


@pytest.fixture
def garden(tmp_path: Path) -> Path:
    return deploy(tmp_path / "garden", "kitchen", "hall")


def token_of(garden: Path, device: str) -> Path:
    return garden / "devices" / device / "delivery.token"


def owner(garden: Path, token: Path) -> str | None:
    return device_of(delivery_of(garden / "server"), token.read_text().strip())


def test_each_device_has_a_token_that_the_server_knows_by_its_hash(garden: Path) -> None:
    for device in ("kitchen", "hall"):
        token = token_of(garden, device)
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert owner(garden, token) == device
        secret = token.read_text().strip()
        for file in (path for path in (garden / "server").rglob("*") if path.is_file()):
            assert secret not in file.read_text()


def test_tokens_stay_when_it_is_deployed_again_and_newcomers_get_theirs(garden: Path) -> None:
    before = token_of(garden, "kitchen").read_text()
    deploy(garden, "kitchen", "cellar")
    assert token_of(garden, "kitchen").read_text() == before
    assert owner(garden, token_of(garden, "kitchen")) == "kitchen"
    assert owner(garden, token_of(garden, "cellar")) == "cellar"


def test_a_revoked_device_stays_out_until_its_token_is_moved_away(garden: Path) -> None:
    token, server = token_of(garden, "kitchen"), delivery_of(garden / "server")
    revoke_token(server, "kitchen")
    deploy(garden, "kitchen")
    assert owner(garden, token) is None
    old = token.rename(garden / "old.token")
    deploy(garden, "kitchen")
    assert owner(garden, token) == "kitchen"
    assert owner(garden, old) is None


def test_a_token_that_is_missing_is_not_replaced_behind_its_devices_back(garden: Path) -> None:
    old = token_of(garden, "kitchen").rename(garden / "old.token")
    with pytest.raises(DeliveryError, match="kitchen has a token already; revoke it"):
        deploy(garden, "kitchen")
    assert owner(garden, old) == "kitchen"


def test_newcomers_come_to_the_ports_that_the_others_know(tmp_path: Path) -> None:
    garden = deploy(tmp_path / "garden", "kitchen", ports=Ports(9400, delivery=9401))
    deploy(garden, "hall", ports=Ports(9400))
    settings = read_device(garden / "devices" / "hall")
    assert (settings.server, settings.delivery) == ("localhost:9400", "localhost:9401")
    with pytest.raises(ConfigError, match=r"server\.toml: 1 problem: delivery-port=9401, not 9402"):
        deploy(garden, "cellar", ports=Ports(delivery=9402))
    assert not (garden / "devices" / "cellar").exists()
    assert read_server(garden / "server").delivery_port == 9401


def test_an_address_of_ipv6_is_written_in_brackets(tmp_path: Path) -> None:
    device = deploy(tmp_path / "garden", "kitchen", address="::1") / "devices" / "kitchen"
    assert read_device(device).server == endpoint("::1", 9092) == "[::1]:9092"
