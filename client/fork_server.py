"""Answers a device's messages with the installed fedhead, each in its own process.

By default Flower runs a command that installs the server's app and runs its code; most of its time
goes into importing torch. This module replaces that command and Flower's SuperExec. It imports
``client.app``, or another app that its owner names, before the first message arrives, asks the
SuperNode for tasks, and forks a child for each task; the children share the imports' memory. So
each message has its own process, and a crash affects nothing else::

    python -P -m client.fork_server SOCKET [--idle] [--app client.gateway.bridge]

A child runs Flower's ``run_clientapp`` without the parts that install or load code: the bundle is
removed before anything looks at it. A run that asks for another app or version is declined. A
task's token never appears in a command line, where other users could read it.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import httpx
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore import log
from flwr.supercore.constant import TaskType

from client.supernode import SocketClient, flowers
from common.bundle import check_claim
from common.errors import DeclinedError, FedheadError, RunError
from common.log import start_log

__all__ = ["serve"]

App = Callable[[Message, Context], Message]

_POLL_SECONDS = 1.0
# If rounds are farther apart, each pays for the imports again, and the memory is free in between.
_IDLE_SECONDS = 300.0
_APP = "client.app"
# The two types that a SuperNode gives to messages. The installed app answers both.
_TASKS = (TaskType.CLIENT_APP, TaskType.AGENT_APP)


def serve(socket: Path, *, idle: bool = False, app: str = _APP) -> NoReturn:
    """Take tasks as long as the parent process lives.

    Args:
        socket: the SuperNode's socket, which need not exist yet.
        idle: whether to import nothing before the first message.
        app: the module with the ClientApp.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended children leave no zombies
    parent, last = os.getppid(), time.monotonic()
    command = None if idle else _load(app)
    # Import first, then look for tasks: Flower gives a taken task only half a minute.
    client = SocketClient(f"http://{socket}")
    request = AcquireTaskRequest(supported_task_types=_TASKS)
    while os.getppid() == parent:
        try:
            answer = client.AcquireTask(request)
        except httpx.HTTPError:
            answer = None  # the SuperNode is starting, is busy or has ended
        if answer and answer.token:
            command, last = command or _load(app), time.monotonic()
            if os.fork() == 0:
                _run(command, str(socket), answer.token)
        elif command and time.monotonic() - last > _IDLE_SECONDS:
            again = [sys.executable, "-P", "-m", "client.fork_server", str(socket), "--idle"]
            os.execv(again[0], [*again, "--app", app])  # noqa: S606 - restarts itself, to drop the imports
        time.sleep(_POLL_SECONDS)
    raise SystemExit


def _load(name: str = _APP) -> Callable[..., object]:
    """Flower's command, unable to install and load code, with all its imports done."""
    app: App = importlib.import_module(name).app

    module = flowers(
        "flwr.supernode.runtime.run_clientapp",
        "run_clientapp", "RuntimeHttpClient", "pull_task_input", "install_from_fab",
        "get_project_dir", "install_app_dependencies", "get_load_client_app_fn",
    )  # fmt: skip
    pull = module.pull_task_input

    def pull_without_code(client: object) -> tuple[Any, ...]:
        message, context, run, fab = pull(client)
        return message, context, run, replace(fab, content=b"")

    def load_installed(app_id: str, version: str, _: str) -> App:
        return _installed(app, app_id, version)

    replaced = {
        "RuntimeHttpClient": SocketClient,
        "pull_task_input": pull_without_code,
        "install_from_fab": lambda *_, **__: None,
        "get_project_dir": lambda *_: None,
        "install_app_dependencies": _refuse,
        "get_load_client_app_fn": lambda **_: load_installed,
    }
    for name, stand_in in replaced.items():
        setattr(module, name, stand_in)
    # A child's garbage collector would write to all objects and so copy the shared pages.
    gc.collect()
    gc.freeze()
    command: Callable[..., object] = module.run_clientapp
    return command


def _installed(app: App, app_id: str, version: str) -> App:
    """The installed app, if the run asks for it. Its errors are one line on both sides."""

    def answer(message: Message, context: Context) -> Message:
        try:
            try:
                check_claim(app_id, version)
            except RunError as exc:
                raise DeclinedError(f"declined: {exc}") from exc
            return app(message, context)
        except FedheadError as exc:
            log(logging.WARNING, "%s", exc)
            reason = f"{type(exc)}:<'{exc}'>"  # in Flower's form
            error = Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason)
            return Message(error, reply_to=message)

    return answer


def _refuse(*_: object, **__: object) -> NoReturn:
    raise RunError("a device installs nothing for a run")


def _run(command: Callable[..., object], socket: str, token: str) -> NoReturn:
    """Run Flower's command in a child. The imports start no threads, which a fork would lose."""
    code: object = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        start_log()
        code = command(socket, token, insecure=True, parent_pid=os.getppid())
    except SystemExit as exc:
        code = exc.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # The child must not run this server's exit handlers.
        os._exit(code if isinstance(code, int) else bool(code))


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(prog="python -m client.fork_server")
    parser.add_argument("socket", type=Path)
    parser.add_argument("--idle", action="store_true")
    parser.add_argument("--app", default=_APP, choices=(_APP, "client.gateway.bridge"))
    arguments = parser.parse_args()
    serve(arguments.socket, idle=arguments.idle, app=arguments.app)


if __name__ == "__main__":
    main()
