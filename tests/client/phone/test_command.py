"""``fedhead phone DIR``: from the folder of a deployment to rounds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from client.phone import launch
from client.phone.settings import read_phone
from common.errors import ConfigError
from common.phones.phones_pb2 import DONE, CheckInReply
from tests.client.phone.conftest import FakeGateway, description_of, task_of, write_images

if TYPE_CHECKING:
    from server.export.trained import TrainedModel

Command = Callable[..., tuple[int, str, str]]


def test_once_does_one_task(
    fedhead: Command, gateway: FakeGateway, folder: Path, trained: TrainedModel
) -> None:
    write_images(folder / "images", trained)
    description = description_of(gateway, trained)
    task = task_of(gateway, description, trained.head.matrix, 30)
    gateway.answers = [CheckInReply(description=description), CheckInReply(task=task)]
    assert fedhead("phone", folder, "--once")[0] == 0
    assert [sent.outcome for sent in gateway.submissions] == [DONE]
    assert len(gateway.check_ins) == 2
    assert gateway.check_ins[0].app.startswith("fedhead ")


def test_once_says_in_a_line_why_there_was_nothing(
    fedhead: Command, gateway: FakeGateway, folder: Path
) -> None:
    (folder / "phone.token").write_text("bert.secret\n")
    code, _, err = fedhead("phone", folder, "--once")
    assert code == 1
    assert "check-in: the token is unknown" in " ".join(err.split())


def test_once_says_and_tells_the_gateway_why_it_cannot_take_part(
    fedhead: Command, gateway: FakeGateway, folder: Path, trained: TrainedModel
) -> None:
    gateway.answers = [CheckInReply(description=description_of(gateway, trained))]
    code, _, err = fedhead("phone", folder, "--once")  # it has no images
    assert code == 1
    assert "it cannot take part: images:" in " ".join(err.split())
    assert [sent.problem.partition(":")[0] for sent in gateway.check_ins] == ["", "images"]


def test_two_processes_do_not_share_a_folder(fedhead: Command, folder: Path) -> None:
    from simulations.deploy.processes import alone

    (folder / "state").mkdir()
    with alone(folder / "state", "fedhead phone"):
        code, _, err = fedhead("phone", folder, "--once")
    assert code == 1
    assert "fedhead phone runs already" in " ".join(err.split())


def test_all_problems_of_the_settings_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "phone.toml").write_text(
        'gateway = "https://host"\ndata = "images"\nmax-examples = -1\nalow = "true"\n'
    )
    with pytest.raises(ConfigError) as caught:
        read_phone(tmp_path)
    assert len(caught.value.problems) == 5
    for key in ("gateway", "delivery", "data", "max-examples", "alow"):
        assert key in str(caught.value)


def test_paths_in_the_settings_are_relative_to_the_folder(folder: Path) -> None:
    phone = read_phone(folder)
    assert (phone.images, phone.state) == (folder / "images", folder / "state")
    assert phone.trusted is None
    (folder / "trusted").mkdir()
    assert phone.trusted == folder / "trusted"


def test_a_phone_asks_for_new_authorities_and_goes_on_without_an_answer(
    gateway: FakeGateway,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = asyncio.Event()
    original = launch._renewed

    def renewed(*arguments: object) -> bool:
        try:
            return original(*arguments)  # type: ignore[arg-type]  # of a closed port
        finally:
            asked.set()

    monkeypatch.setattr(launch, "_renewed", renewed)

    async def work() -> None:
        running = asyncio.create_task(launch.run_phone(read_phone(folder)))
        async with asyncio.timeout(30):
            while not (asked.is_set() and len(gateway.check_ins) > 3):
                await asyncio.sleep(0.02)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    with caplog.at_level(logging.WARNING, "fedhead"):
        asyncio.run(work())
    assert "127.0.0.1:1: check-in: cannot be reached" in caplog.text
