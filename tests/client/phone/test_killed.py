"""A phone that is killed at any moment goes on: no result is lost, none is computed twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from client.phone.kept import Kept
from common.phones.phones_pb2 import CheckInReply, CheckInRequest, Later
from tests.client.phone.conftest import (
    HEAD,
    FakeGateway,
    description_of,
    sha256,
    small_description,
    task_of,
    write_images,
)
from tests.client.phone.killed import ARRAY

if TYPE_CHECKING:
    from server.export.trained import TrainedModel

ROOT = Path(__file__).parents[3]


def run(folder: Path, gateway: FakeGateway, step: int) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "tests.client.phone.killed", folder, str(gateway.port), str(step)],
        cwd=ROOT, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def honest(gateway: FakeGateway) -> None:
    """The gateway offers one task, again and again, to a phone that has met its run."""

    def answer(request: CheckInRequest) -> CheckInReply:
        description = small_description(gateway)
        if description.id not in [held.description for held in request.holdings]:
            return CheckInReply(description=description)
        if gateway.submissions:
            return CheckInReply(later=Later(min_seconds=1, max_seconds=2))
        return CheckInReply(task=task_of(gateway, description, HEAD, 12))

    gateway.answer = answer


@pytest.mark.slow
def test_a_phone_that_is_killed_before_any_change_of_a_file_goes_on(
    gateway: FakeGateway, folder: Path
) -> None:
    honest(gateway)
    steps = computed = 0
    while True:
        killed = run(folder, gateway, steps) != 0
        if killed:
            had_result = (folder / "state" / "result").exists()
            had_task = (folder / "state" / "task").exists()
            before = (folder / "done").read_text() if (folder / "done").exists() else ""
            assert run(folder, gateway, -1) == 0
            if had_result and had_task:
                assert (folder / "done").read_text() == before  # not once more
        assert gateway.submissions
        figures = {(s.task, s.loss_before, s.arrays[0].sha256) for s in gateway.submissions}
        assert len({task for task, *_ in figures}) == 1
        assert bytes(gateway.uploads[sha256(ARRAY)]) == ARRAY
        assert Kept(folder / "state").work() is None
        assert not [*(folder / "state").rglob("*.part")]
        if not killed:
            break
        steps += 1
        computed = max(computed, len((folder / "done").read_text().split()))
        reset(folder, gateway)
    assert steps > 20
    assert computed == 2  # killed after the training, before the result was on the disk


def reset(folder: Path, gateway: FakeGateway) -> None:
    """A new phone and a gateway that remembers nothing."""
    for path in sorted((folder / "state").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    for name in ("done", "backbone"):
        (folder / name).unlink(missing_ok=True)
    gateway.submissions.clear()
    gateway.uploads.clear()


@pytest.mark.slow
def test_a_real_phone_that_is_killed_at_random_moments_answers_every_task_once(
    gateway: FakeGateway, folder: Path, trained: TrainedModel
) -> None:
    write_images(folder / "images", trained)
    description = description_of(gateway, trained)
    rounds = 25

    def answer(request: CheckInRequest) -> CheckInReply:
        if not request.holdings:
            return CheckInReply(description=description)
        answered = {sent.task for sent in gateway.submissions}
        if len(answered) == rounds:
            return CheckInReply(later=Later(min_seconds=1, max_seconds=2))
        name = sha256(f"round {len(answered) + 1}".encode())[:32]
        task = task_of(gateway, description, trained.head.matrix, 30, id=name)
        return CheckInReply(task=task)

    gateway.answer = answer
    rng, kills = random.Random(0), 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    end = time.monotonic() + 240
    while len({sent.task for sent in gateway.submissions}) < rounds:
        assert time.monotonic() < end
        process = subprocess.Popen(
            [sys.executable, "-m", "fedhead", "phone", str(folder)], cwd=ROOT, env=environment
        )
        have = len(gateway.submissions)
        # Within one of its first rounds, so that the kills lie all over its work.
        calls = len(gateway.check_ins) + rng.randint(1, 4)
        while len(gateway.check_ins) < calls and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        assert process.poll() is None
        process.kill()
        process.wait()
        kills += 1
        assert len(gateway.submissions) >= have
    assert kills >= 5
    by_task: dict[str, set[bytes]] = {}
    for sent in gateway.submissions:
        assert sent.outcome == 1, sent.reason
        by_task.setdefault(sent.task, set()).add(
            sent.arrays[0].data or sent.arrays[0].sha256.encode()
        )
    assert len(by_task) == rounds
    # The tasks differ by their ids alone, so all results are the same bytes.
    assert len(set.union(*by_task.values())) == 1
