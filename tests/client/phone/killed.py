"""A phone whose trainer counts; it may kill itself before a change of one of its files.

    killed.py FOLDER PORT STEP

It does a run's task up to the verdict, and SIGKILLs itself before change number STEP below
FOLDER/state, unless STEP is -1. What it computes is noted in FOLDER/done, one line each.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from client.phone.link import Link
from client.phone.phone import Phone
from client.phone.trainer import Computed, Order
from common.phones.phones_pb2 import Backbone, Description
from tests.delivery.killed import die_before

ARRAY = bytes(range(256)) * 3000  # 768 kB: it is uploaded in three parts


class Counting:
    """Notes each training; each has other losses, so that a second one would show."""

    formats, abilities = ("torch",), ("sgd",)

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self, description: Description, backbone: Backbone, data: bytes | None) -> bool:
        path = self._folder / "backbone"
        if data is not None:
            path.write_bytes(data)
        return path.exists()

    def holding(self, description: Description) -> tuple[int, int]:
        return 12, 4

    def sgd(self, order: Order) -> Computed:
        with (self._folder / "done").open("a") as file:
            file.write(f"{order.round_number}\n")
        count = len((self._folder / "done").read_text().split())
        return Computed(12, float(count), float(count), arrays={"delta": ARRAY})

    def statistics(self, order: Order) -> Computed:
        raise NotImplementedError

    def evaluate(self, order: Order) -> Computed:
        raise NotImplementedError


async def live(folder: Path, port: int) -> None:
    address = f"127.0.0.1:{port}"
    link = Link(address, authority=folder / "ca.crt", token=folder / "phone.token")
    async with link:
        phone = Phone(link, Counting(folder), folder / "state", wait_seconds=0)
        while not await phone.turn():
            pass


if __name__ == "__main__":
    place, number = Path(sys.argv[1]), int(sys.argv[3])
    if number >= 0:
        die_before(number, place / "state")
    asyncio.run(live(place, int(sys.argv[2])))
