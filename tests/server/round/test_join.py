"""A run waits for its devices as long as it says, and one that goes on for a quorum of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from PIL import Image

from common.config import Config, changed, load_config
from common.errors import ReplyError, RunError
from common.experiment import experiment_dataset
from common.messages import BackboneReply, DescribeReply
from server.record.progress import Progress
from server.round import backbone_offer
from server.round.admission import Admission
from server.round.algorithm import sample_cohort
from server.round.backbone_offer import Offer, deliver
from server.round.join import _account, join, make_registry
from server.round.join import _needs as needs

Make = Callable[..., Path]


class Silent:
    """Nodes that Flower takes to be there, and that do not answer; none of them: no node."""

    def __init__(self, *nodes: int) -> None:
        self.nodes = nodes

    def get_node_ids(self) -> Sequence[int]:
        return self.nodes

    def push_messages(self, messages: Sequence[Message]) -> list[str]:
        return [str(number) for number, _ in enumerate(messages)]

    def pull_messages(self, _: Sequence[str]) -> list[Message]:
        return []


def wait(run: Path, grid: Any, *, resumes: bool) -> None:
    config = load_config(run / "config.toml")
    dataset: Any = SimpleNamespace(classes=("0", "1"), content_key="")
    backbone = Offer("f" * 64, bytes)
    registry = make_registry(grid, config, "run", dataset, backbone, Progress())
    join(registry, config, dataset, devices=True, resumes=resumes)


def test_a_simulated_node_that_has_read_other_data_is_refused() -> None:
    admission = Admission(None, max_clients=2, data="a" * 64)
    admission.simulated = True
    admission.check(1, DescribeReply((0,), (3,), simulated=True, data="a" * 64))
    with pytest.raises(ReplyError, match="other data than the server"):
        admission.check(1, DescribeReply((0,), (3,), simulated=True, data="b" * 64))


def test_a_backbone_is_delivered_within_the_time_that_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[float] = []

    def ask(
        _grid: object,
        _kind: str,
        _request: object,
        nodes: Sequence[int],
        seconds: float,
        *_: object,
    ) -> tuple[dict[int, RecordDict], dict[int, str]]:
        given.append(seconds)
        time.sleep(seconds)  # nobody answers sooner
        return {node: BackboneReply(False).write() for node in nodes}, {}

    monkeypatch.setattr(backbone_offer, "ask", ask)
    offered = Offer("f" * 64, lambda: b"bytes")
    grid: Any = None
    deliver(offered, grid, [1], 0.4, print, lambda *_: None)
    assert len(given) == 2
    assert sum(given) <= 0.4


@pytest.mark.parametrize(
    ("number", "here", "words"),
    [
        (3, 2, " (train.clients-per-round=3; --set train.clients-per-round=2 takes fewer)"),
        (0.5, 2, " (train.clients-per-round=0.5; --set train.clients-per-round=2 takes fewer)"),
        (3, 0, " (train.clients-per-round=3)"),  # 0 would mean every client
        (0, 0, ""),  # one is needed, whatever the key
    ],
)
def test_a_run_without_enough_clients_names_the_key_and_what_takes_fewer(
    number: float, here: int, words: str
) -> None:
    config = changed(Config(), {"train": {"clients-per-round": number}})
    assert needs(config, here, resumes=False) == words


@pytest.mark.parametrize("nodes", [(), (1,)])
@pytest.mark.parametrize(("resumes", "needed"), [(False, 4), (True, 3)])
def test_without_an_answer_it_ends_when_it_says(
    tiny: Make, monkeypatch: pytest.MonkeyPatch, nodes: tuple[int, ...], resumes: bool, needed: int
) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    monkeypatch.setattr("server.round.join._JOIN_SECONDS", 1.0)
    run = tiny("train.clients-per-round=4", "round.quorum=0.6")
    started = time.monotonic()
    key = r"\(round\.quorum=0\.6 of " if resumes else r"\("
    words = rf"0 clients .* after 1 s, {needed} are needed {key}train\.clients-per-round=4\)$"
    with pytest.raises(RunError, match=words):
        wait(run, Silent(*nodes), resumes=resumes)
    assert time.monotonic() - started < 60  # ten minutes, where a node that is dead was waited for


class Devices:
    """A deployment of five devices, of which some are there, in place of its registry."""

    simulated, deployed, has_phones, population = False, True, False, 5

    def __init__(self, here: int) -> None:
        self.clients = dict.fromkeys(range(here))
        self.awaited: list[int] = []

    def refresh(self, _seconds: float) -> None:
        pass

    def gather(self, count: int, *_: float) -> bool:
        self.awaited.append(count)
        return len(self.clients) >= count

    def ready(self) -> int:
        return len(self.clients)

    def complaints(self) -> str:
        return ""


@pytest.mark.parametrize(
    ("epsilon", "awaited"),
    [(math.inf, [1, 1]), (4.0, [3, 3, 5])],  # the first one; the quorum of five, then all
)
def test_a_private_run_awaits_all_devices(
    epsilon: float, awaited: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    config = changed(Config(), {"privacy": {"epsilon": epsilon}})
    registry: Any = Devices(4)
    none: Any = None
    join(registry, config, none, devices=True)
    assert registry.awaited == awaited
    assert ("4 of 5 devices are there" in caplog.text) == (epsilon == 4.0)


def test_a_private_run_does_not_begin_with_a_few_devices() -> None:
    config = changed(Config(), {"privacy": {"epsilon": 4.0}})
    registry: Any = Devices(2)
    none: Any = None
    with pytest.raises(RunError, match=r"2 clients .*, 3 are needed \(round\.quorum=0\.5 of the "):
        join(registry, config, none, devices=True)


@pytest.mark.parametrize(("private", "wanted"), [(True, 5), (False, 2)])
def test_a_private_round_wants_all_devices(private: bool, wanted: int) -> None:
    guard = SimpleNamespace(chosen=lambda *_: None) if private else None
    registry: Any = Devices(2)
    registry.known, registry.stragglers = set(range(2)), SimpleNamespace(busy=set)
    run: Any = SimpleNamespace(config=Config(), registry=registry, guard=guard)
    assert sample_cohort(run, 1) == ([0, 1], wanted)


@pytest.mark.parametrize(("asked", "said"), [(9, "9 to calibrate with"), (64, "16 of the 64")])
def test_a_run_says_where_fewer_images_calibrate_than_asked_for(
    asked: int, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(60):
        path = tmp_path / str(number % 3) / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4), number).save(path)
    data = {"source": f"folder:{tmp_path}", "calibration-examples": asked}
    config = Config.model_validate({"data": data, "partition": {"num-clients": 2}})
    with caplog.at_level("INFO", logger="fedhead"):
        _account(config, experiment_dataset(config))
    first = caplog.messages[0]
    assert said in first
    assert first.endswith("half of each class)") == (asked == 64)
