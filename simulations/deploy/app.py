"""Flower's SuperLink as an ASGI app, changed for deployments.

If its database is busy for too long, Flower answers 500, which its clients take as final, and a
device's message would be lost. Here it waits longer and answers 503, on which clients try again. A
message whose fetching failed does not count as fetched. Its log does not say which device answers
when: of a private run with secret cohorts, that would tell whom each round has asked.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from datetime import datetime
from functools import wraps
from types import ModuleType
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
from flwr.supercore import sql_mixin
from flwr.supercore.constant import SQLITE_PRAGMAS, TASK_TYPE_TO_COMMAND
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan, _parse_superlink_lifespan_config
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app
from flwr.superlink.routers.fleet.router import router
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers
from sqlalchemy import exc as sql_errors

__all__ = [
    "devices_routes",
    "flower_app",
    "has_signed",
    "is_told",
    "key_lookup",
    "patient",
    "started_commands",
]

# Less than the 30 s after which Flower's clients ask again.
_BUSY_MILLISECONDS = 20_000


def flower_app() -> tuple[FastAPI, SuperLinkLifespanConfig]:
    """Flower's app and configuration, from this process's arguments."""
    state: Any = sql_mixin
    state.SQLITE_PRAGMAS = (*SQLITE_PRAGMAS, ("busy_timeout", str(_BUSY_MILLISECONDS)))
    config = _parse_superlink_lifespan_config()
    logging.getLogger("flwr").addFilter(is_told)
    return patient(create_app(config, SuperLinkLifespan)), config


def is_told(record: logging.LogRecord) -> bool:
    """Whether a line of Flower's log is to be seen: not if it is about a device's answer."""
    return not str(record.msg).startswith("[Fleet.PushMessages]")


def patient(app: FastAPI) -> FastAPI:
    """Flower's app, which asks clients to try again if its database is too busy."""
    for module in (fleet_handlers, runtime_handlers):
        _at_once(module, "pull_messages")
    app.add_exception_handler(sql_errors.OperationalError, _busy)
    app.add_exception_handler(sql_errors.TimeoutError, _busy)  # no free database connection
    return app


def devices_routes() -> set[tuple[str, str]]:
    """Methods and paths of Flower's routes for devices."""
    return {
        (method, route.path)
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }


def key_lookup(app: FastAPI) -> Callable[[bytes], Awaitable[bool]]:
    """A function that says whether a public key is registered in Flower's state."""

    def look(key: bytes) -> bool:
        return app.state.linkstate_factory.state().get_node_id_by_public_key(key) is not None

    return lambda key: asyncio.to_thread(look, key)


def has_signed(key: bytes, moment: bytes, signature: bytes) -> bool:
    """Whether a device's private key has just signed the time, by Flower's rule."""
    try:
        age = (now() - datetime.fromisoformat(moment.decode("ascii"))).total_seconds()
        if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
            return False
        return verify_signature(bytes_to_public_key(key), moment, signature)
    except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm):
        return False  # not a time, not a key, or a key of another kind


def started_commands() -> set[str]:
    """The commands that Flower's SuperLink and SuperExec start by name."""
    return {"flower-superexec", *TASK_TYPE_TO_COMMAND.values()}


def _at_once(module: ModuleType, name: str) -> None:
    """Make the changes of one of Flower's handlers a single transaction.

    Otherwise the handler marks messages as fetched and may fail after that.
    """
    handler = getattr(module, name)
    if hasattr(handler, "__wrapped__"):
        return

    @wraps(handler)
    def in_one_transaction(request: Any, state: Any, *rest: Any, **more: Any) -> Any:
        transaction = state.session() if isinstance(state, sql_mixin.SqlMixin) else nullcontext()
        with transaction:
            return handler(request, state, *rest, **more)

    setattr(module, name, in_one_transaction)


async def _busy(_: object, exc: Exception) -> JSONResponse:
    if isinstance(exc, sql_errors.OperationalError) and "locked" not in str(exc.orig):
        raise exc
    return JSONResponse({"detail": "busy"}, 503)
