"""A deployment's folder, and what is started from it."""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import pytest
import tomli_w
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store
from flwr.common.config import parse_config_args

from common.errors import ConfigError, RunError
from server.record.runfolder import RunFolder
from simulations.deploy import certificates, launch
from simulations.deploy.authority import sign_server
from simulations.deploy.certificates import certificates_in
from simulations.deploy.changes import renew_authority, renew_certificate
from simulations.deploy.folder import Ports, write_deployment
from simulations.deploy.launch import (
    check_served,
    device_command,
    run_device,
    serve,
    superlink_command,
)
from simulations.deploy.settings import read_device
from simulations.run import open_run

Fedhead = Callable[..., tuple[int, str, str]]


def deploy(folder: Path, *devices: str, port: int = 9092) -> Path:
    write_deployment(folder, addresses=["localhost"], devices=devices, ports=Ports(port), days=30)
    return folder


def keys(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.key")}


def test_the_server_certificate_is_the_authoritys_for_each_address(tmp_path: Path) -> None:
    folder = deploy(tmp_path / "d", "kitchen")
    authority, server = (
        x509.load_pem_x509_certificate((folder / name).read_bytes())
        for name in ("devices/kitchen/ca.crt", "server/server.crt")
    )
    builder = PolicyBuilder().store(Store([authority])).time(datetime.now(UTC))
    # And for loopback: Flower's own processes on the server come there.
    for name in (x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))):
        verifier = builder.build_server_verifier(name)
        assert verifier.verify(server, []) == [server, authority]
    with pytest.raises(x509.verification.VerificationError):
        builder.build_server_verifier(x509.DNSName("example.org")).verify(server, [])


def test_keys_are_their_owners_alone_and_never_replaced(tmp_path: Path) -> None:
    folder = deploy(tmp_path / "d", "kitchen")
    before = keys(folder)
    assert set(before) == {"authority/ca.key", "server/server.key", "devices/kitchen/device.key"}
    for name in before:
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name
    settings = folder / "devices" / "kitchen" / "device.toml"
    settings.write_text(settings.read_text().replace("folder:images", "folder:/mine"))
    certificate = (folder / "server" / "server.crt").read_bytes()
    deploy(folder, "hall")
    assert {name: keys(folder)[name] for name in before} == before
    assert "folder:/mine" in settings.read_text()
    assert (folder / "server" / "server.crt").read_bytes() != certificate
    assert "hall, kitchen" in (folder / "README.md").read_text()


def test_no_other_user_enters_a_folder_that_holds_keys(tmp_path: Path) -> None:
    folder = deploy(tmp_path / "d", "kitchen")
    own = [folder / name for name in ("authority", "server", "devices/kitchen")]
    for path in own:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        path.chmod(0o755)
    deploy(folder, "kitchen")
    for path in own:
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_half_a_pair_of_keys_is_refused(tmp_path: Path) -> None:
    folder = deploy(tmp_path / "d", "kitchen")
    (folder / "devices" / "kitchen" / "device.key").unlink()
    before = keys(folder)
    with pytest.raises(RunError, match=r"device\.key is missing"):
        deploy(folder, "kitchen")
    assert keys(folder) == before


def test_wrong_names_are_named_together_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        write_deployment(
            tmp_path / "d", addresses=["a b"], devices=["../x", "a", "a"], days=1, ports=Ports(1)
        )
    assert [re.sub(r" (is|must).*", "", problem) for problem in error.value.problems] == [
        "address 'a b'", "device '../x'", "device 'a'",
    ]  # fmt: skip
    assert not (tmp_path / "d").exists()


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(RunError, match="is not a deployment"):
        deploy(tmp_path, "a")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_flowers_commands_name_the_folders_files_and_the_budget(tmp_path: Path) -> None:
    folder = deploy(tmp_path / "d", "kitchen", port=9400)
    device = folder / "devices" / "kitchen"
    text = device_command(device, tmp_path)
    assert text[text.index("--superlink") + 1] == "localhost:9400"
    assert f'data="folder:{device}/images"' in text[-1]
    assert "max-threads=1" in text[-1]
    server = superlink_command(folder / "server")
    assert "--enable-supernode-auth" in server
    assert "--insecure" not in server


@pytest.mark.parametrize(
    "allow", ['[ "$(cat /sys/ac)" = 1 ]', "a\\\\", 'it\'s "x=\\"1\\""', "on 🔌"]
)
def test_an_owners_command_reaches_the_device_as_it_was_written(tmp_path: Path, allow: str) -> None:
    device = deploy(tmp_path / "d", "kitchen") / "devices" / "kitchen"
    settings = tomllib.loads((device / "device.toml").read_text())
    (device / "device.toml").write_text(tomli_w.dumps(settings | {"allow": allow}))
    given = parse_config_args([device_command(device, tmp_path)[-1]])
    assert given["allow"] == allow
    assert given["data"] == f"folder:{device}/images"


def test_a_damaged_certificate_is_named_before_anything_starts(tmp_path: Path) -> None:
    server = deploy(tmp_path / "d", "kitchen") / "server"
    (server / "server.crt").write_text("junk")
    with pytest.raises(RunError, match=r"server\.crt"):
        serve(server, lambda line: pytest.fail(line))


def test_a_wrong_key_in_device_toml_names_file_and_key(tmp_path: Path) -> None:
    device = deploy(tmp_path / "d", "kitchen") / "devices" / "kitchen"
    with (device / "device.toml").open("a") as file:
        file.write("max-thread = 2\n")
    with pytest.raises(ConfigError, match=r"device\.toml: 1 problem.*did you mean max-threads"):
        device_command(device, tmp_path)


def test_a_server_whose_certificate_has_ended_says_what_renews_it(tmp_path: Path) -> None:
    folder = deploy(tmp_path / "d", "kitchen")
    sign_server(folder, ["localhost"], days=0)
    with pytest.raises(RunError, match=rf"server\.crt ended on .*: fedhead fleet {folder} renew"):
        serve(folder / "server", print)


def test_the_servers_certificate_ends_with_its_authority_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "d"
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "MOST_DAYS", 20)
        deploy_for(folder, 20)
    end = certificates_in(folder / "authority" / "ca.crt")[0].not_valid_after_utc
    for days, said in ((10, []), (3650, [f"certificate ends on {end:%Y-%m-%d}, with its author"])):
        notes = deploy_for(folder, days)
        assert len(notes) == len(said)
        assert all(part in note for note, part in zip(notes, said, strict=True))
        assert certificates_in(folder / "server" / "server.crt")[0].not_valid_after_utc <= end
    told: list[str] = []
    renew_certificate(folder, 3650, told.append)
    assert f"valid until {end:%Y-%m-%d}; " in told[0]


def deploy_for(folder: Path, days: int) -> list[str]:
    return write_deployment(folder, addresses=["localhost"], devices=["kitchen"], days=days)


def test_an_authority_that_has_ended_signs_nothing_and_its_remedy_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "d"
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "MOST_DAYS", 0)
        with pytest.raises(RunError, match="expected at most 0"):
            deploy_for(folder, 30)
    authority = folder / "authority"
    before = (authority / "ca.crt").read_bytes()
    for attempt in (lambda: deploy_for(folder, 30), lambda: renew_authority(folder, 30, print)):
        with pytest.raises(RunError, match=r"ca\.crt ended on .* move it and ca\.key away, make"):
            attempt()
    assert not [path for path in authority.iterdir() if path.name not in ("ca.key", "ca.crt")]
    for name in ("ca.key", "ca.crt"):
        (authority / name).rename(tmp_path / name)
    deploy_for(folder, 30)
    after = (authority / "ca.crt").read_bytes()
    assert after != before
    assert after == (folder / "devices" / "kitchen" / "ca.crt").read_bytes()
    store = Store(certificates_in(authority / "ca.crt"))
    verifier = PolicyBuilder().store(store).build_server_verifier(x509.DNSName("localhost"))
    assert verifier.verify(certificates_in(folder / "server" / "server.crt")[0], [])


@pytest.mark.parametrize(
    "args",
    [
        ["deploy", "DIR", "--device", "a", "--address", "localhost", "--days", "100000000"],
        ["fleet", "DIR", "renew", "--days", "3651"],
        ["publish", "RUN", "--to", "DIR", "--expires", "100000000"],
        ["publish", "RUN", "--to", "DIR", "--version", "1000000000000000000"],
        ["delivery", "restore", "DIR", "1", "--expires", "100000000"],
        ["delivery", "serve", "DIR", "--downloads", "1000000000"],
    ],
)
def test_numbers_beyond_all_bounds_are_refused_before_anything_is_written(
    fedhead: Fedhead, tmp_path: Path, args: list[str]
) -> None:
    folder = tmp_path / "d"
    if args[0] != "deploy":
        deploy(folder, "kitchen")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code, _, err = fedhead(*(folder if arg == "DIR" else arg for arg in args))
    assert code == 2
    words = " ".join(err.replace("│", " ").split())
    assert re.search(r"Invalid value for '--\w+': \d+ is not in the range 1<=x<=\d+", words)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("address", ["fed.example.org:65536", "fed.example.org:0", "fed", "::1:9"])
def test_an_address_that_cannot_be_is_refused(tmp_path: Path, address: str) -> None:
    device = deploy(tmp_path / "d", "kitchen") / "devices" / "kitchen"
    settings = device / "device.toml"
    settings.write_text(settings.read_text().replace("localhost:9095", address))
    with pytest.raises(ConfigError, match="delivery='.*' must be host:port, with an IPv6 address"):
        read_device(device)


def test_a_server_is_found_in_its_deployment(fedhead: Fedhead, tmp_path: Path) -> None:
    folder = deploy(tmp_path / "d", "kitchen")
    sign_server(folder, ["localhost"], days=0)
    for place in (folder, folder / "server"):
        code, _, err = fedhead("serve", place)
        assert code == 1
        assert f"{folder / 'server' / 'server.crt'} ended on " in " ".join(err.split())
        with pytest.raises(RunError, match=f"no server of {place} runs here"):
            check_served(place)


def test_a_fetch_that_a_timer_starts_ends_before_the_next(tmp_path: Path) -> None:
    unit = deploy(tmp_path / "d", "kitchen") / "devices" / "kitchen" / "fedhead-fetch.service"
    assert re.search(r"^Type=oneshot$(.|\n)*^TimeoutStartSec=50min$", unit.read_text(), re.M)


def test_a_run_without_its_server_is_refused_before_it_has_a_folder(
    fedhead: Fedhead, tiny_toml: str, tmp_path: Path
) -> None:
    folder = deploy(tmp_path / "d", "kitchen")
    (tmp_path / "tiny.toml").write_text(tiny_toml)
    run = tmp_path / "runs" / "tiny"
    code, _, err = fedhead("run", tmp_path / "tiny.toml", "--out", run, "--deployment", folder)
    assert code == 1
    words = " ".join(err.split())
    assert words == f"fedhead: no server of {folder} runs here: fedhead serve {folder / 'server'}"
    assert not run.exists()


def test_a_run_of_real_devices_goes_on_with_them_only(
    fedhead: Fedhead, tiny: Callable[..., Path]
) -> None:
    run = tiny()
    RunFolder(run, open_run(run)).bind_clients(simulated=False)
    code, _, err = fedhead("resume", run)
    assert code == 1
    assert f"{run} began with real devices: fedhead resume" in " ".join(err.split())


def test_a_device_without_images_says_so_when_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Reached(BaseException):
        """What follows starts processes."""

    def stop() -> None:
        raise Reached

    monkeypatch.setattr(launch, "terminable", stop)
    write_deployment(tmp_path / "garden", addresses=["localhost"], devices=["hall"])
    device = tmp_path / "garden" / "devices" / "hall"
    images, said = device / "images", list[str]()
    for make in (None, images, images / "cat"):
        if make:
            make.mkdir()
        with pytest.raises(Reached):
            run_device(device, said.append)
    (images / "cat" / "1.png").touch()
    with pytest.raises(Reached):
        run_device(device, said.append)
    missing, *empty = said
    assert missing.startswith(f"warning: {images} is missing, expected a folder with one sub-fold")
    assert [line[: len(f"warning: {images} is empty")] for line in empty] == [
        f"warning: {images} is empty"
    ] * 2
