"""Files of deployments, and of their gateways."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from client.gateway.figures import Figures
from client.gateway.place import Settings
from client.gateway.presence import Presence
from client.gateway.runs import Runs
from client.gateway.uploads import Uploads
from common.delivery.tokens import device_of, issue_token
from common.delivery.versions import Artifact, read_artifact
from common.files import sha256_file
from common.messages import DescribeRequest
from common.phones import file_name
from server.delivery.checkins import CheckIn, check_ins, save_check_in
from server.delivery.reports import DeviceReport, save_report, survey
from server.round.roster import CLIENT, client_file, read_roster
from simulations.deploy import phone_files
from simulations.deploy.last_run import read_last_run, remember_run
from tests.readback.rows import Make, Row, into, is_none

ROWS: dict[str, Make] = {}
row = into(ROWS)


# Gateways


@row("record of a gateway")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    run, _ = Runs(tmp).describe(DescribeRequest("r-1", ("a", "b"), 0.2, 7, "", 0, False, "f" * 64))
    run.counts = {5: (10, 2)}
    Runs(tmp).kept(run)()

    def read() -> Any:
        found = Runs(tmp).get("r-1")
        return found.request, found.counts

    return Row([tmp / "r-1"], read)


@row("fleet.json of a gateway")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    def figures() -> Figures:
        return Figures(tmp / "fleet.json", Presence(Settings()))

    first = figures()
    first.count("accepted")
    first.keep(first.pack())

    def read() -> Any:
        again = figures()
        again.restore()
        return dict(again.counters)

    return Row([tmp / "fleet.json"], read, lambda found: not found)


@row("upload of a phone")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    data = bytes(range(100))
    digest = hashlib.sha256(data).hexdigest()
    Uploads(tmp).add("task-1", digest, len(data), 0, data, 1)
    return Row([tmp / "task-1" / digest], lambda: Uploads(tmp).read("task-1", digest))


# Deployments


def artifact(shelf: Path, version: int = 1) -> Artifact:
    """A version on a shelf."""
    folder = shelf / str(version)
    folder.mkdir(parents=True)
    (folder / shelf.name).write_bytes(b"model")
    sha256 = sha256_file(folder / shelf.name)
    made = Artifact(shelf.name, version, 5, sha256, '{"fingerprint": "f"}')
    made.describe(folder)
    return made


@row("artifact.json of a published version")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    artifact(tmp / "m")
    return Row([tmp / "m" / "1" / "artifact.json"], lambda: read_artifact(tmp / "m", 1))


@row("file of a published version")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    made = artifact(tmp / "m")
    path = made.path(tmp / "m")
    # What is damaged is not delivered, and fetched again.
    return Row([path], lambda: made.damage(path), bool)


@row("report of a device")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    made = artifact(tmp / "artifacts" / "m")
    save_report(tmp, made, "hall", DeviceReport(12, 0.75, True))
    return Row([*(tmp / "reports").rglob("*.json")], lambda: survey(tmp)[0].reports)


@row("check-in of a device")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    save_check_in(tmp, "hall", CheckIn("fedhead 0.1.0", "0" * 64, {"m": 3}))
    return Row([tmp / "check-ins" / "hall.json"], lambda: check_ins(tmp), lambda found: not found)


@row("hash of a device's token")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    issue_token(tmp, "hall", tmp / "token")
    token = (tmp / "token").read_text().strip()
    return Row([tmp / "tokens" / "hall"], lambda: device_of(tmp, token), is_none)


@row("client id of a device")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    CLIENT.write(client_file(tmp, "hall"), {"client": 12345678})
    (tmp / "devices" / "hall.pub").write_text("a key")
    return Row([client_file(tmp, "hall")], lambda: read_roster(tmp), lambda found: not found)


@row("last-run.json of a deployment")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    (tmp / "run").mkdir()
    remember_run(tmp, tmp / "run")
    return Row([tmp / "last-run.json"], lambda: read_last_run(tmp))


@row("about.json of a backbone for phones")
def _(tmp: Path, request: pytest.FixtureRequest) -> Row:
    about = {"classes": ["a"], "version": "1"}
    for kind in ("executorch", "lite"):
        (tmp / file_name(kind, ["a"])).touch()
    file = phone_files._about_file(tmp, ["a"])
    phone_files._ABOUT.write(file, about | {"files": phone_files._digests(tmp, ["a"])})

    def read() -> list[str]:
        return phone_files.lacking(tmp, about)  # "torch" is always among them: there is none

    return Row([file], read, lambda found: found == ["torch", "executorch", "lite"])
