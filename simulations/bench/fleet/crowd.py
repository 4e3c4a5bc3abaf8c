"""The phones of a fleet, in one process with one event loop.

A script: ``python -m simulations.bench.fleet.crowd ORDERS``. It ends with SIGTERM. Its phones share
TLS connections unless the orders say otherwise: ten thousand connections from one machine would
measure the machine. What a task asks for is computed between two calls.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import signal
import sys
from contextlib import suppress
from pathlib import Path

import grpc
import grpc.aio

from common.files import write_atomic
from common.open_files import allow_files
from common.phones.wire import CHANNEL_OPTIONS, Stub
from simulations.bench.fleet.orders import Orders, read_images, read_orders
from simulations.bench.fleet.phone import Phone, World
from simulations.bench.fleet.tally import Tally

__all__ = ["main"]

_WRITE_SECONDS = 2.0
_SPARE_FILES = 64


async def main(orders: Orders) -> None:
    """Let the phones live until SIGTERM."""
    images, shares = read_images(Path(orders.images))
    count = len(orders.tokens)
    zones = [orders.profile.zone_of(number, count) for number in range(count)]
    draws = random.Random(orders.seed)  # noqa: S311 - a simulation
    world = World(images, shares, orders.profile, orders.faults, draws, Tally(zones))
    stubs = _stubs(orders)
    gc.freeze()  # ten thousand phones are not garbage, and looking through them takes a while
    lives = [
        asyncio.create_task(
            Phone(
                number, token, stubs[number % len(stubs)], world,
                orders.profile.zones[zones[number]], draws.uniform(0, orders.starts_within),
            ).live()
        )
        for number, token in enumerate(orders.tokens)
    ]  # fmt: skip
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    try:
        while not over.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), _WRITE_SECONDS)
            _write(orders, world)
            for life in lives:
                if life.done():
                    life.result()  # a phone that fails is a mistake here
    finally:
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)


def _write(orders: Orders, world: World) -> None:
    content = json.dumps(world.tally.figures(world.now)).encode()
    write_atomic(Path(orders.figures), content, durable=False)


def _stubs(orders: Orders) -> list[Stub]:
    """One for each connection."""
    authority = Path(orders.authority).read_bytes()
    credentials = grpc.ssl_channel_credentials(authority)
    # Channels to the same address would share one connection otherwise.
    options = [*CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    return [
        Stub(grpc.aio.secure_channel(orders.gateway, credentials, options))
        for _ in range(orders.connections or len(orders.tokens))
    ]


if __name__ == "__main__":
    told = read_orders(Path(sys.argv[1]))
    allow_files(_SPARE_FILES + 2 * (told.connections or len(told.tokens)))
    asyncio.run(main(told))
