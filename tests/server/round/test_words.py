"""Words from elsewhere: a device tells no secrets, and nobody steers the server's screen."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Error, Message
from flwr.common.serde import message_to_proto

import server.app
from client.app import app as client_app
from client.discretion import kind_of
from common import errors
from common.experiment import run_config
from common.log import OneLine
from fedhead.cli.run_tables import rows_table
from fedhead.cli.terminal import print_error
from server.app import run_experiment
from server.export.runtime_cards import ExportReport
from server.record.events import event, event_log
from simulations.deploy.last_run import _said
from simulations.engines.in_process import InProcessGrid

Make = Callable[..., Path]
Grid = type[InProcessGrid]

NASTY = (
    "out\x1b[2J\x1b]0;owned\x07 of\r\nround 1/9  accuracy 1.0000\x9b31m \u202egpj.exe "
    "[bold red]battery[/] <script>alert(1)</script>"
)
SECRETS = ("hunter2", "my-private", "images/", "/state")


@pytest.fixture(autouse=True)
def _no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.app, "export", lambda *_: ExportReport("model", Path(), 0, ""))


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="fedhead")


def run(folder: Path, grid_class: Grid, app: Any = client_app) -> None:
    values = {"experiment": str(folder / "config.toml"), "overrides": ""}
    run_experiment(grid_class(app, 1, values), run_config(values))


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_a_device_tells_the_kind_of_a_problem_and_nothing_of_its_owners(
    tiny: Make, devices: list[Path], device_grid: Grid, caplog: pytest.LogCaptureFixture
) -> None:
    replies: list[bytes] = []

    class Heard(device_grid):  # type: ignore[valid-type,misc]
        def __init__(self, app: Any, nodes: int, values: dict[str, Any]) -> None:
            super().__init__(app, nodes, values)
            self._contexts[2].node_config["allow"] = "test hunter2 = my-private"

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            for reply in super().pull_messages(message_ids):
                replies.append(message_to_proto(reply).SerializeToString())
                yield reply

    def app(message: Message, context: Context) -> Message:
        for file in (devices[2] / "state" / "clients").rglob("103/*.safetensors"):
            file.write_bytes(b"damaged")
        return client_app(message, context)

    (devices[0] / "images" / "3").rename(devices[0] / "images" / "my-private")
    folder = tiny("train.rounds=2", "train.clients-per-round=2", "strategy.name=scaffold")
    run(folder, Heard, app)
    said = {(line["event"], line.get("reason")) for line in logged(folder)}
    more = "; see its own log"
    assert ("node", f"its images cannot be used{more}") in said
    assert ("declined", "its owner's command says no") in said
    assert ("rejected", f"its stored data of the run cannot be used{more}") in said
    for secret in (*SECRETS, *map(str, devices)):
        assert not [reply for reply in replies if secret.encode() in reply], secret
    # What the server was not told is in the devices' own log.
    for detail in ("my-private", "exited with 1", f"{devices[2] / 'state'}"):
        assert detail in caplog.text


@pytest.mark.parametrize(
    "name", [name for name in errors.__all__ if name not in ("ConfigError", "MissingExtraError")]
)
def test_each_of_our_errors_has_a_kind(name: str) -> None:
    words = ("/home/me/my-private", "why") if name == "DamagedError" else ("/home/me/my-private",)
    problem = getattr(errors, name)(*words)
    speakable = name in ("ReplyError", "ProtocolError", "DeclinedError")
    assert ("my-private" in kind_of(problem)) == speakable


@pytest.mark.parametrize("problem", [OSError(28, "No space left", "/x"), MemoryError(), KeyError()])
def test_every_other_error_has_one_too(problem: Exception) -> None:
    assert kind_of(problem).endswith("; see its own log")


def test_words_of_a_device_are_one_printable_line_wherever_they_are_written(
    tiny: Make, device_grid: Grid, tmp_path: Path
) -> None:
    def hostile(message: Message, context: Context) -> Message:
        kind, node = message.metadata.message_type, context.node_id
        if (kind, node) in (("train", 1), ("evaluate", 2)):
            return Message(Error(2, NASTY + "x" * 1_000_000), reply_to=message)
        return client_app(message, context)

    screen = io.StringIO()
    handler = logging.StreamHandler(screen)
    handler.setFormatter(OneLine("%(message)s"))
    logging.getLogger("fedhead").addHandler(handler)
    options = ("train.clients-per-round=3", "round.deadline-seconds=30")
    folder = tiny("train.rounds=1", *options)
    run(folder, device_grid, hostile)
    (failed,) = [line for line in logged(folder) if line["event"] == "failed"]
    for text in (failed["reason"], failed["message"], *screen.getvalue().splitlines()):
        assert text.isprintable()
        assert len(text) < 500
    named = [line for line in screen.getvalue().splitlines() if "out [2J" in line]
    assert [line.partition(": out")[0] for line in named] == [
        "round 1: client 101", "client 102 did not evaluate",
    ]  # fmt: skip
    ((reason, _),) = _said(folder / "events.jsonl")[1].values()
    assert reason == failed["reason"]


def test_what_is_logged_shown_or_told_does_not_steer_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = io.StringIO()
    handler = logging.StreamHandler(screen)
    handler.setFormatter(OneLine("fedhead %(levelname)s: %(message)s"))
    logger = logging.getLogger("fedhead")
    logger.addHandler(handler)
    with event_log(tmp_path / "events.jsonl"):
        logger.warning("%s", NASTY)
        event("rejected", NASTY, reason=NASTY, round=1)
    print_error(NASTY)
    lines = screen.getvalue().splitlines() + capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for line in json.loads(f"[{','.join((tmp_path / 'events.jsonl').read_text().splitlines())}]"):
        lines += [line["message"], line.get("reason", "")]
    assert all(line.isprintable() for line in lines)


def test_a_table_shows_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    rows_table("run [/b]", {"run [red]": "runs/[bold]a[/bold][/b]"})
    shown = capsys.readouterr().out
    for words in ("run [/b]", "run [red]", "runs/[bold]a[/bold][/b]"):
        assert words in shown
