"""The commands that measure: data before there is a federation, and models after."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import ConfigError
from fedhead.cli.terminal import JsonFlag, configured, near, print_all

if TYPE_CHECKING:
    from common.config import Config

__all__ = ["measures"]

measures = typer.Typer()

_REPORT = Path("quantize-report")
_ARCHS = ("mobilenet_v2", "efficientnet_lite0", "mobilenet_v3_large")


@measures.command()
def probe(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A folder with one sub-folder a class, a table (.csv), or a data set as "
            "data.source names it.",
        ),
    ],
    target: Annotated[
        float, typer.Option(min=0.01, max=0.999, help="Accuracy that you need.")
    ] = 0.9,
    examples: Annotated[int, typer.Option(min=10, help="Images to use at most.")] = 5000,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of \\[data] or \\[backbone]."),
    ] = None,
    out: Annotated[Path, typer.Option(help="File of the plot.")] = Path("probe.png"),
    json_: JsonFlag = False,
) -> None:
    """Does training the head alone suffice for these images? Asked before anything is deployed.

    Linear heads on the frozen int8 backbone's features, in cross-validation.
    """
    from common.plots import check_drawable
    from simulations.probe import draw, judge, probe_data
    from simulations.probe.probe_tables import as_json, tables

    check_drawable(out, purpose="drawing a probe")  # before the long work
    found = probe_data(
        _configured(set_, _source(data), "DATA", ("backbone.*",)),
        examples=examples,
    )
    verdict = judge(found, target)
    draw(found, target, out)
    if json_:
        print(json.dumps({**as_json(found, verdict), "plot": str(out.resolve())}))
        return
    print_all(tables(found, verdict))
    print(near(str(out.resolve())))


@measures.command()
def profile(
    model: Annotated[Path, typer.Argument(help="A model.pt that fedhead exported.")],
    quantized_engine: Annotated[
        str, typer.Option(help="Torch's, such as qnnpack; without it, the one in the model's card.")
    ] = "",
    trace: Annotated[
        Path, typer.Option(help="Trace file, for chrome://tracing or ui.perfetto.dev.")
    ] = Path("trace.json"),
    json_: JsonFlag = False,
) -> None:
    """Where a model's time goes on this machine: layers, images per second, memory."""
    from simulations.bench.speed import profile_model
    from simulations.bench.speed.profile_tables import as_json, tables

    found = profile_model(model, engine=quantized_engine, trace=trace)
    if json_:
        print(json.dumps(as_json(found)))
        return
    print_all(tables(found))
    print(near(str(trace.resolve())))


TestDataOption = Annotated[
    str, typer.Option(help="Data set that heads are tested on, as data.source names it.")
]
ArchOption = Annotated[
    list[str] | None,
    typer.Option(help=f"Backbone; may be given several times. Without it, {', '.join(_ARCHS)}."),
]
WeightsOption = Annotated[
    list[str] | None,
    typer.Option(metavar="ARCH=WEIGHTS", help="A backbone's weights, as backbone.weights."),
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
    examples: Annotated[int, typer.Option(min=50, help="Images to test on at most.")] = 4000,
    set_: InputOption = None,
    out: Annotated[Path, typer.Option(help="Folder for report and plot.")] = _REPORT,
    json_: JsonFlag = False,
) -> None:
    """What each way of making a backbone small costs and gains, on each runtime; minutes.

    Writes quantize.md, quantize.json and quantize.png.
    """
    from common.plots import check_drawable
    from simulations.quantization import as_json, notes, tables, write_report
    from simulations.quantization import quantize_report as measure

    check_drawable(out / "quantize.png", purpose="drawing the report")  # before the long work
    config = _configured(set_, data, "--data", _INPUT_KEYS)
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
            help="What an app made of it for the model: .npy of shape (3, S, S) or (S, S, 3), or "
            "3 * S * S bytes, three planes of red, green and blue."
        ),
    ],
    json_: JsonFlag = False,
) -> None:
    """Does an app give the model the pixels that it was trained on? If not, what went wrong?

    The exit code is 1 if they differ by more than decoders and rounding do.
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
            print("the same image, but for decoders and rounding")
        elif found.mistakes:
            print(f"it looks like this: {'; '.join(found.mistakes)}")
        else:
            print("another image, or a mistake that is not known here")
    if not found.same:
        raise typer.Exit(1)


# Of [data], what decides which images there are and which of them quantize.
_DATA_KEYS = tuple(
    f"data.{key}"
    for key in (
        "root", "download", "strict", "label-column", "image-column", "test-fraction",
        "calibration-examples", "seed",
    )
)  # fmt: skip
_INPUT_KEYS = ("backbone.input-size", "backbone.mean", "backbone.std")


def _source(data: str) -> str:
    """The data set that a person names by its folder or table, as data.source does."""
    path = Path(data)
    if path.is_dir():
        return f"folder:{path.resolve()}"
    return f"csv:{path.resolve()}" if path.is_file() else data


def _configured(
    items: Sequence[str] | None, source: str, option: str, more: Sequence[str]
) -> Config:
    return configured(
        None, items, {"data": {"source": source}},
        reads=(*_DATA_KEYS, *more, "seed"), elsewhere={"data.source": option},
    )  # fmt: skip


def _weights(archs: Sequence[str] | None, given: Sequence[str] | None) -> dict[str, str]:
    """Backbones to compare, each with its weights; "" for what is at hand."""
    from common.backbone.architectures import architecture

    weights = {architecture(arch).name: "" for arch in archs or _ARCHS}
    for item in given or []:
        arch, separator, name = item.partition("=")
        if not (separator and name) or arch not in weights:
            known = ", ".join(weights)
            raise ConfigError([f"--weights {item}: expected ARCH=WEIGHTS, ARCH one of {known}"])
        weights[arch] = name
    return weights
