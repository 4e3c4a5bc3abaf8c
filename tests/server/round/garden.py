"""Three devices with valid keys in this process: attic lies, hall and kitchen are honest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict

from client.app import app as client_app
from common.identity import client_of_node
from server.round.roster import CLIENT, client_file
from simulations.engines.in_process import InProcessGrid

Change = Callable[[Message, Message], None]

# As Flower draws them; the liar is heard first.
NODES = {"attic": 3 * 10**9, "hall": 2**63 + 5 * 10**9, "kitchen": 2**63 + 7 * 10**9}
CLIENTS = {name: client_of_node(node) for name, node in NODES.items()}


def register(folder: Path, name: str) -> None:
    (folder / "devices").mkdir(parents=True, exist_ok=True)
    (folder / "devices" / f"{name}.pub").write_text("ecdsa-sha2-nistp384 ...")
    CLIENT.write(client_file(folder, name), {"client": client_of_node(NODES[name])})


def revoke(folder: Path, name: str) -> None:
    (folder / "devices" / f"{name}.pub").unlink()


def honest(_message: Message, _reply: Message) -> None:
    pass


class Garden(InProcessGrid):
    """Three devices by their nodes' ids; attic's replies are changed on their way."""

    def __init__(self, devices: list[Path], change: Change = honest, away: Iterable[str] = ()):
        def app(message: Message, context: Context) -> Message:
            reply = client_app(message, context)
            if context.node_id == NODES["attic"]:
                change(message, reply)
            return reply

        super().__init__(app, 0, {})  # type: ignore[arg-type]
        for (name, node), folder in zip(NODES.items(), devices, strict=True):
            if name not in away:
                config = {"data": f"folder:{folder / 'images'}", "state": str(folder / "state")}
                self._contexts[node] = Context(
                    run_id=1, node_id=node, node_config=config, state=RecordDict(), run_config={}
                )


def answers(kind: str, change: Callable[[ConfigRecord], None]) -> Change:
    """Change the report of each reply to a kind of message."""

    def changed(message: Message, reply: Message) -> None:
        if message.metadata.message_type == kind:
            report: Any = reply.content["report"]
            change(report)

    return changed


def sets(**values: Any) -> Callable[[ConfigRecord], None]:
    return lambda report: report.update({key.replace("_", "-"): v for key, v in values.items()})


def describes(**values: Any) -> Change:
    return answers("query.describe", sets(**values))
