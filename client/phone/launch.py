"""Runs a phone from its folder, with its own images."""

from __future__ import annotations

import asyncio
import logging
import random
from importlib.metadata import version

from client.delivery.authorities import check_in
from client.delivery.remote import Remote
from client.phone.images import ImageTrainer
from client.phone.link import Link
from client.phone.phone import Phone
from client.phone.settings import PhoneFolder
from common.errors import DeliveryError, RunError

__all__ = ["run_phone"]

logger = logging.getLogger("fedhead")

_SECONDS, _AGAIN_SECONDS = 3600.0, 600.0  # between questions for new authorities


async def run_phone(folder: PhoneFolder, *, once: bool = False) -> None:
    """Take part in rounds.

    Args:
        folder: of the phone.
        once: end at the first pause that is due, after a task or without one.

    Raises:
        FedheadError, OSError: with ``once``, whatever keeps it from its turn; else only what is
            wrong at the start.
    """
    state, settings = folder.state, folder.settings
    trainer = ImageTrainer(
        folder.images, state, trusted=folder.trusted, max_examples=settings.max_examples
    )
    app = f"fedhead {version('fedhead')}"
    async with Link(settings.gateway, authority=folder.authority, token=folder.token) as link:
        phone = Phone(link, trainer, state, budget=folder.budget, app=app)
        if once:
            while not await phone.turn():
                pass
            if problem := phone.problem:
                await phone.turn()  # which tells the gateway
                raise RunError(f"it cannot take part: {problem}")
            return
        renewing = asyncio.create_task(_renew(folder, app, link))
        try:
            await phone.run()
        finally:
            renewing.cancel()


async def _renew(folder: PhoneFolder, app: str, link: Link) -> None:
    """Ask each hour which authorities to trust, as a device does."""
    while True:
        try:
            if await asyncio.to_thread(_renewed, folder, app):
                logger.info("%s: the trusted authorities changed", folder.authority)
                await link.close()  # its next call trusts the new ones
            pause = _SECONDS
        except (DeliveryError, OSError) as exc:
            logger.warning("%s", exc)
            pause = _AGAIN_SECONDS
        # Random, so that phones that lost power together do not always come together.
        await asyncio.sleep(pause * random.uniform(0.9, 1.1))  # noqa: S311 - not a secret


def _renewed(folder: PhoneFolder, app: str) -> bool:
    settings = folder.settings
    with Remote(settings.delivery, authority=folder.authority, token=folder.token) as remote:
        doors = [settings.gateway, settings.delivery]
        return check_in(remote, folder.authority, doors, app=app, in_use={})
