"""A backbone of one's own: a row of the table, a network, and a reader of a foreign file."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional

from common.backbone.architectures import ARCHITECTURES, Architecture, Embedded
from common.backbone.frozen import FrozenBackbone
from common.backbone.networks import float_network
from common.backbone.weights import load_weights
from common.config import load_config, parse_overrides
from common.errors import BackboneError, ConfigError, MissingExtraError
from common.files import sha256_file
from server.export.exporters import FILES, export
from server.export.trained import TrainedModel
from simulations.run import run_in_process

NAME = "own_net"


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Sequential(nn.Conv2d(channels, 32, 1), nn.BatchNorm2d(32), nn.ReLU()),
            nn.Conv2d(32, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.sum = FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        return self.sum.add(x, self.branch(x))


class OwnNet(nn.Module):
    """Stages within stages, with a forward of its own; blocks lie at no fixed depth."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1, bias=False), nn.BatchNorm2d(16))
        self.stages = nn.Sequential(
            nn.Sequential(nn.Sequential(Residual(16), Residual(16)), Residual(16)),
            nn.Sequential(nn.Conv2d(16, 48, 1, bias=False), nn.BatchNorm2d(48), nn.ReLU6()),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(self.stem(x))


def foreign(own: Sequence[str], found: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Whoever saved it numbered the tensors."""
    return {name: found[f"t{i}"] for i, name in enumerate(own)}


@pytest.fixture
def row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Architecture:
    """The row, and the package that it names, installed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = OwnNet().state_dict()
    torch.save({f"t{i}": tensor for i, tensor in enumerate(state.values())}, tmp_path / "own.pth")
    embedded = Embedded(
        package="own-weights",
        version="1.0",
        extra="own",
        file="own.pth",
        sha256=sha256_file(tmp_path / "own.pth"),
        licence="one's own",
        reader=f"{__name__}:foreign",
    )
    row = Architecture(
        NAME,
        "OwnNet",
        network=f"{__name__}:OwnNet",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        embedded=embedded,
    )
    file = importlib.metadata.PackagePath("own.pth")
    file.dist = type("Dist", (), {"locate_file": lambda _, path: tmp_path / path})()
    files = importlib.metadata.files
    monkeypatch.setattr(
        importlib.metadata, "files", lambda name: [file] if name == "own-weights" else files(name)
    )
    monkeypatch.setitem(ARCHITECTURES, NAME, row)
    return row


def test_a_row_is_all_that_a_run_needs(row: Architecture, quick: Callable[..., Path]) -> None:
    run = quick(
        f"backbone.arch={NAME}", "backbone.distill-steps=2", "train.lr=0.1", "train.rounds=8"
    )
    summary = run_in_process(run)
    assert summary["accuracy"] > 0.3  # of ten digits, with random filters
    assert f'arch = "{NAME}"' in (run / "config.toml").read_text()
    spec = FrozenBackbone.load(run).spec
    assert (spec.arch, spec.num_features) == (NAME, 48)
    assert spec.weights == "imagenet (own-weights 1.0)"
    assert (spec.mean, spec.std) == (row.mean, row.std)


@pytest.mark.slow
@pytest.mark.parametrize("target", FILES)
def test_every_target_takes_it(
    row: Architecture, make_trained: Callable[..., TrainedModel], tmp_path: Path, target: str
) -> None:
    report = export(make_trained(NAME, "imagenet", 64), target, tmp_path / FILES[target])
    assert report.model_bytes < 400_000
    if report.argmax_agreement is not None:
        assert report.argmax_agreement > (0.999 if target in ("model", "device", "lite") else 0.8)


def test_a_foreign_file_is_read_by_the_rows_reader(row: Architecture) -> None:
    state = load_weights(NAME, "imagenet").state
    assert state is not None
    own = float_network(NAME, state).state_dict()
    assert list(own) == list(OwnNet().state_dict())
    assert float(own["stem.0.weight"].std()) > 0


def test_what_a_row_lacks_is_said(row: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=f"backbone.arch='other_net' must be one of .*{NAME}"):
        load_config(None, parse_overrides(["backbone.arch=other_net"]))
    with pytest.raises(BackboneError, match="expected one of imagenet, random, file:PATH$"):
        load_weights(NAME, "imagenet22k")
    monkeypatch.undo()  # the package is gone
    monkeypatch.setitem(ARCHITECTURES, NAME, row)
    with pytest.raises(MissingExtraError, match=r"own-weights.*fedhead\[own\]"):
        load_weights(NAME, "imagenet")
    bare = dataclasses.replace(row, embedded=None)
    monkeypatch.setitem(ARCHITECTURES, NAME, bare)
    with pytest.raises(BackboneError, match="expected one of random, file:PATH$"):
        load_weights(NAME, "imagenet")
    wrong = dataclasses.replace(row, network="nowhere.at_all:network")
    monkeypatch.setitem(ARCHITECTURES, NAME, wrong)
    with pytest.raises(BackboneError, match="nowhere.at_all:network in the table of backbones"):
        float_network(NAME, {})
