"""The program on the page about phones computes what fedhead computes, and prints what is shown."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pytest
import torch
from fenced import ROOT, blocks

from client.phone.images import ImageTrainer
from client.sgd import Terms, train_head
from common.codecs import find_codec
from common.partition import evenly, local_split
from common.phones.wire import LONGEST_WAIT
from common.privacy.integers import clipped, is_within, with_offset
from common.seeding import Purpose, batch_order, batch_seed, stream_state, words
from common.types import LocalTraining

PAGE = (ROOT / "docs/phones.md").read_text()


@pytest.fixture(scope="module")
def program() -> dict[str, Any]:
    """The page's functions, and what it has printed."""
    (block,) = (b for b in blocks(PAGE) if b.notes.get("file") == "phone_numbers.py")
    scope: dict[str, Any] = {}
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(block.text, "phone_numbers.py", "exec"), scope)
    return {**scope, "printed": printed.getvalue()}


def test_the_page_shows_what_its_program_prints(program: dict[str, Any]) -> None:
    shown = [b.text for b in blocks(PAGE) if b.language == "text"]
    assert program["printed"] in shown


def test_its_draws_and_orders_are_fedheads(program: dict[str, Any]) -> None:
    assert program["LOCAL_SPLIT"] == Purpose.LOCAL_SPLIT
    assert program["stream"](7, 5, 5) == stream_state(7, Purpose.LOCAL_SPLIT, 5)
    state = stream_state(7, Purpose.UPLINK, -1)
    want = words(np.uint64(state), np.arange(50, dtype=np.uint64)).tolist()
    assert [program["word"](state, i) for i in range(50)] == want
    for client in range(20):
        seed = batch_seed(seed=7, round_number=3, client=client)
        found = program["batch_order"](seed % 2**64, 2, 30)
        order = batch_order(30, seed=7, round_number=3, client=client, epoch=2)
        assert found == order.tolist()


def test_its_split_is_fedheads(program: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(400):
        labels = np.sort(rng.integers(0, rng.integers(1, 12), rng.integers(1, 40)))
        fraction = float(rng.choice([0.0, 0.1, 0.2, 0.25, 1 / 3, 0.5, rng.random()]))
        seed, client = int(rng.integers(0, 2**63)), int(rng.integers(0, 2**63))
        _, test = local_split(
            np.arange(len(labels)), labels, client=client, test_fraction=fraction, seed=seed
        )
        assert program["test_part"](labels.tolist(), fraction, seed, client) == test.tolist()


def test_its_limit_of_images_is_fedheads() -> None:
    assert "positions `i n / m`, rounded down" in PAGE
    assert evenly(10, 4).tolist() == [i * 10 // 4 for i in range(4)]


def test_its_steps_are_fedheads(program: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, 5)).astype(np.float32)
    x[:, -1] = 1
    labels, start = rng.integers(0, 3, 6), rng.normal(size=(3, 5)).astype(np.float32)
    training = LocalTraining(0.3, 4, 6, 0.9, 0.01)
    order = np.arange(6)
    trained = train_head(
        *map(torch.from_numpy, (x, labels, start)), training, [order] * 4, Terms(mu=0.1)
    )
    first = start.tolist()
    head, velocity = first, np.zeros_like(start).tolist()
    for _ in range(4):
        head, velocity = program["step"](
            head, velocity, x.tolist(), labels.tolist(), 0.3, 0.9, 0.01, 0.1, first
        )
    assert np.allclose(np.array(head) - start, trained.delta.numpy(), atol=1e-6)
    assert np.abs(trained.delta.numpy()).max() > 0.1


@pytest.mark.parametrize("name", ["int8", "drive"])
@pytest.mark.parametrize("width", [1, 5, 64, 65, 256, 300])
def test_its_payloads_are_fedheads_to_the_bit(
    name: str, width: int, program: dict[str, Any]
) -> None:
    rng = np.random.default_rng(width)
    array = (rng.normal(size=(3, width)) * 10.0 ** rng.integers(-6, 4, (3, 1))).astype(np.float32)
    array[1] = 0
    encode: Callable[..., bytes] = program[name]
    for seed in (0, 11, 2**64 - 1):
        assert encode(array.tolist(), seed) == find_codec(name).encode(array, seed)


def test_its_clipped_updates_are_fedheads_to_the_bit(program: dict[str, Any]) -> None:
    rng = np.random.default_rng(2)
    for scale in (0.0, 1e-3, 0.2, 0.3, 5.0):
        delta = (scale * rng.normal(size=40)).astype(np.float32)
        sent, within = program["clipped"](delta.tolist(), 1.5)
        assert sent == with_offset(clipped(delta, 1.5)).tolist()
        assert within == is_within(delta, 1.5)


def test_the_page_lists_every_ability_and_the_longest_wait() -> None:
    table = PAGE.partition("## Abilities")[2].partition("## The numeric rules")[0]
    first = {
        word
        for row in table.splitlines()
        if row.startswith("| `")
        for word in row.split("|")[1].split("`")[1::2]
    }
    assert first == {*ImageTrainer.abilities}
    assert f"for up to {LONGEST_WAIT} seconds" in PAGE
