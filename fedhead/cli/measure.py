"""The commands that measure models: their speed, their quantization, an app's pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from common.errors import ConfigError
from fedhead.cli.sources import INPUT_KEYS, configured_source
from fedhead.cli.terminal import JsonFlag, near, print_all

__all__ = ["measures"]

measures = typer.Typer()

_REPORT = Path("quantize-report")
_ARCHS = ("mobilenet_v2", "efficientnet_lite0", "mobilenet_v3_large")


@measures.command()
def profile(
    model: Annotated[Path, typer.Argument(help="A model.pt that fedhead exported.")],
    quantized_engine: Annotated[
        str,
        typer.Option(help="Torch's engine, such as qnnpack; by default that of the model's card."),
    ] = "",
    trace: Annotated[
        Path, typer.Option(help="Trace file, for chrome://tracing or ui.perfetto.dev.")
    ] = Path("trace.json"),
    json_: JsonFlag = False,
) -> None:
    """Measure a model on this machine: time per layer, images per second, memory."""
    from simulations.bench.speed import profile_model
    from simulations.bench.speed.profile_tables import as_json, tables

    found = profile_model(model, engine=quantized_engine, trace=trace)
    if json_:
        print(json.dumps(as_json(found)))
        return
    print_all(tables(found))
    print(near(str(trace.resolve())))


TestDataOption = Annotated[
    str, typer.Option(help="Data set to test heads on; a value of data.source.")
]
ArchOption = Annotated[
    list[str] | None,
    typer.Option(help=f"Backbone; may be given several times. By default {', '.join(_ARCHS)}."),
]
WeightsOption = Annotated[
    list[str] | None,
    typer.Option(metavar="ARCH=WEIGHTS", help="A backbone's weights; a value of backbone.weights."),
]
InputOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A key of \\[data], or backbone.input-size, mean or std.",
    ),
]


@measures.command("quantize-report")
def quantize_report(
    data: TestDataOption = "mnist5k",
    arch: ArchOption = None,
    weights: WeightsOption = None,
    examples: Annotated[int, typer.Option(min=50, help="Largest number of test images.")] = 4000,
    set_: InputOption = None,
    out: Annotated[Path, typer.Option(help="Folder for report and plot.")] = _REPORT,
    json_: JsonFlag = False,
) -> None:
    """Compare ways to make a backbone small: accuracy, size, speed. Takes minutes.

    Each way is measured on each runtime. Writes quantize.md, quantize.json and quantize.png.
    """
    from common.plots import check_drawable
    from simulations.quantization import as_json, notes, tables, write_report
    from simulations.quantization import quantize_report as measure

    check_drawable(out / "quantize.png", purpose="drawing the report")  # before the long work
    config = configured_source(set_, data, "--data", INPUT_KEYS)
    report = measure(config, _weights(arch, weights), examples=examples)
    page = near(str(write_report(report, out).resolve()))
    if json_:
        print(json.dumps({**as_json(report), "report": page}))
        return
    print_all(tables(report))
    print_all((f"- {note}" for note in notes(report)), highlight=False)
    print(page)


@measures.command("compare-pixels")
def compare_pixels(
    image: Annotated[Path, typer.Argument(help="An image file.")],
    pixels: Annotated[
        Path,
        typer.Argument(
            help="The app's input to the model for that image: .npy of shape (3, S, S) or "
            "(S, S, 3), or 3 * S * S bytes, one plane each of red, green and blue."
        ),
    ],
    json_: JsonFlag = False,
) -> None:
    """Check that an app prepares an image as in training; if not, say what it does wrong.

    The exit code is 1 if the pixels differ by more than decoders and rounding explain.
    """
    from server.export.compare_pixels import compare_pixels as compare

    found = compare(image, pixels)
    if json_:
        print(json.dumps(asdict(found)))
    else:
        print(
            f"{found.size} x {found.size} pixels: they differ by {found.mean_difference:.2f} of "
            f"255 levels on average, by {found.max_difference:.0f} at most"
        )
        if found.same:
            print("the same image, apart from decoders and rounding")
        elif found.mistakes:
            print(f"it looks like this: {'; '.join(found.mistakes)}")
        else:
            print("another image, or an unknown mistake")
    if not found.same:
        raise typer.Exit(1)


def _weights(archs: Sequence[str] | None, given: Sequence[str] | None) -> dict[str, str]:
    """Backbones to compare, each with its weights; "" for the weights that are at hand."""
    from common.backbone.architectures import architecture

    weights = {architecture(arch).name: "" for arch in archs or _ARCHS}
    for item in given or []:
        arch, separator, name = item.partition("=")
        if not (separator and name) or arch not in weights:
            known = ", ".join(weights)
            raise ConfigError([f"--weights {item}: expected ARCH=WEIGHTS, ARCH one of {known}"])
        weights[arch] = name
    return weights
