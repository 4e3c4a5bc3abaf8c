"""The command that trains a backbone before it is frozen: ``fedhead fine-tune``.

Typer takes a command's options as its parameters, so they are more than seven.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fedhead.cli.sources import DataArgument, configured_source, source_of
from fedhead.cli.terminal import JsonFlag, near, print_all
from simulations.fine_tune.plan import DEFAULT, Plan

__all__ = ["fine_tune"]

_KEYS = {"arch": "--arch", "weights": "--weights", "input-size": "--size"}


def fine_tune(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="File to write, such as tuned.safetensors.")],
    epochs: Annotated[
        int, typer.Option(min=1, help="Passes over the training images.")
    ] = DEFAULT.epochs,
    arch: Annotated[str, typer.Option(help="Network; a value of backbone.arch.")] = "mobilenet_v2",
    weights: Annotated[
        str, typer.Option(help="Weights to start from; a value of backbone.weights.")
    ] = "imagenet",
    size: Annotated[
        int, typer.Option(min=32, max=1024, help="Input size to train for, in pixels.")
    ] = 96,
    lr: Annotated[float, typer.Option(min=1e-7, max=1, help="Largest learning rate.")] = DEFAULT.lr,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the images' order; data.seed is the split's.")
    ] = DEFAULT.seed,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="A key of \\[data], or backbone.features, mean or std.",
        ),
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Train a whole backbone on public images, for backbone.weights of experiments.

    It trains on the training images only; test images are never read.

    Clients' private images are not for this: everybody gets the weights.
    """
    from simulations.fine_tune.fine_tune import fine_tune as train

    config = configured_source(
        set_, source_of(data), "DATA", ("backbone.features", "backbone.mean", "backbone.std"),
        backbone={"arch": arch, "weights": weights, "input-size": size},
        elsewhere={f"backbone.{key}": option for key, option in _KEYS.items()},
    )  # fmt: skip
    tuned = train(config, Plan(epochs, lr, seed), out)
    if json_:
        print(json.dumps({"file": str(out.resolve()), **tuned.provenance}))
        return
    print_all([f"{near(str(out.resolve()))}, as lines of an experiment:", tuned.toml_lines])
