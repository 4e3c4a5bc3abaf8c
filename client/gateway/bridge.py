"""The ClientApp of a gateway's SuperNode: hands each message to the gateway's service, and waits.

Flower starts a process for each message. The service lives on; if it dies or has not started yet,
the message is sent again until its time is over. The service knows a message again.
"""

from __future__ import annotations

import socket
import time
from contextlib import closing
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.gateway.frames import framed, receive
from common.errors import ConfigError, FedheadError, ProtocolError
from common.messages import content_from, content_to
from common.messages.content import config_of

__all__ = ["app", "forward"]

app = ClientApp()

_ANSWER_SECONDS = 60.0  # of a question that does not say how long the server waits
_PAUSE_SECONDS = 0.2


def _reply(kind: str, message: Message, context: Context) -> Message:
    path = context.node_config.get("gateway")
    if not isinstance(path, str):
        raise ConfigError(['expected gateway="PATH of the service\'s socket"'], "node config")
    seconds = _ANSWER_SECONDS
    if kind in ("train", "evaluate"):
        said = config_of(message.content, "config").get("seconds", 0.0)
        seconds = float(said) if isinstance(said, float) and said > 0 else _ANSWER_SECONDS
    answer = forward(Path(path), kind, content_to(message.content), seconds)
    return Message(content_from(answer), reply_to=message)


def forward(path: Path, kind: str, content: bytes, seconds: float) -> bytes:
    """The service's answer to a message.

    Args:
        path: the service's socket, which need not exist yet.
        kind: "describe", "backbone", "train" or "evaluate".
        content: the message's.
        seconds: time to wait, if need be for the service to come back.

    Raises:
        FedheadError: what the service says is wrong, or it cannot be reached.
    """
    ends, last = time.monotonic() + seconds, "no answer"
    while (left := ends - time.monotonic()) > 0:
        try:
            words, answer = _asked(path, framed({"kind": kind}, content), left)
        except (OSError, ValueError) as exc:
            last = str(exc) or type(exc).__name__
            time.sleep(min(_PAUSE_SECONDS, max(0.0, ends - time.monotonic())))
            continue
        if "error" in words:
            kinds = {"ProtocolError": ProtocolError}
            raise kinds.get(str(words.get("type")), FedheadError)(str(words["error"]))
        return answer
    raise FedheadError(f"the gateway's service did not answer within {seconds:g} s: {last}")


def _asked(path: Path, frame: bytes, seconds: float) -> tuple[dict[str, object], bytes]:
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.settimeout(seconds)
        connection.connect(str(path))
        connection.sendall(frame)
        return receive(connection)


@app.query("describe")
def describe(message: Message, context: Context) -> Message:
    """Answer which phones are there."""
    return _reply("describe", message, context)


@app.query("backbone")
def backbone(message: Message, context: Context) -> Message:
    """Answer whether there are files of the backbone for phones."""
    return _reply("backbone", message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Have phones train."""
    return _reply("train", message, context)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Have phones evaluate."""
    return _reply("evaluate", message, context)
