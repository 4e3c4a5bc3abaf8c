"""The commands that measure: data before a deployment, models after a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import ConfigError, DataError
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
            help="A folder with one sub-folder per class, a table (.csv), or a value of "
            "data.source.",
        ),
    ],
    target: Annotated[
        float, typer.Option(min=0.01, max=0.999, help="Accuracy that you need.")
    ] = 0.9,
    examples: Annotated[int, typer.Option(min=10, help="Largest number of images.")] = 5000,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of \\[data] or \\[backbone]."),
    ] = None,
    sizes: Annotated[
        str, typer.Option(help="Input sizes to compare, in pixels; empty: compare nothing.")
    ] = "96,160",
    features: Annotated[str, typer.Option(help="Kinds of features to compare.")] = "",
    archs: Annotated[str, typer.Option(help="Backbones to compare.")] = "",
    out: Annotated[Path, typer.Option(help="File of the plot.")] = Path("probe.png"),
    json_: JsonFlag = False,
) -> None:
    """Estimate, before a deployment, what accuracy a head alone can reach on your images.

    Trains linear heads on the frozen int8 backbone's features, in cross-validation.
    """
    from common.plots import check_drawable
    from simulations.probe import compare_options, draw, feature_kinds, judge, probe_data
    from simulations.probe.images import probe_images
    from simulations.probe.options import COMPARED
    from simulations.probe.probe_tables import as_json, tables

    check_drawable(out, purpose="drawing a probe")  # before the long work
    config = _configured(set_, _source(data), "DATA", ("backbone.*",))
    chosen = _sizes(sizes)
    networks = _networks(archs) or (config.backbone.arch,)
    images = probe_images(config, examples)
    found = probe_data(config, images)
    options = compare_options(
        config,
        images.fewer(COMPARED),
        archs=networks,
        sizes=chosen,
        features=_words(features) or feature_kinds(),
    )
    verdict = judge(found, target)
    draw(found, target, out)
    if json_:
        print(json.dumps({**as_json(found, verdict, options), "plot": str(out.resolve())}))
        return
    print_all(tables(found, verdict, options))
    print(near(str(out.resolve())))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _sizes(text: str) -> tuple[int, ...]:
    """The value of --sizes.

    Raises:
        ConfigError: an item is no input size.
    """
    words = _words(text)
    if wrong := [word for word in words if not (word.isdecimal() and 32 <= int(word) <= 1024)]:
        raise ConfigError([f"--sizes {', '.join(wrong)}: expected pixels from 32 to 1024"])
    return tuple(sorted({int(word) for word in words}))


def _networks(text: str) -> tuple[str, ...]:
    """The value of --archs.

    Raises:
        BackboneError: there is no such backbone.
    """
    from common.backbone.architectures import architecture

    return tuple(architecture(word).name for word in _words(text))


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


# The keys of [data] that decide which images there are and which calibrate the quantization.
_DATA_KEYS = tuple(
    f"data.{key}"
    for key in (
        "root", "download", "strict", "label-column", "image-column", "test-fraction",
        "calibration-examples", "seed",
    )
)  # fmt: skip
_INPUT_KEYS = ("backbone.input-size", "backbone.mean", "backbone.std")


def _source(data: str) -> str:
    """The value of data.source for a folder, a table or a data set's name.

    Raises:
        DataError: it is none of these; names what comes near.
    """
    from common.datasets import Reading, is_source, nearest_sources

    path = Path(data)
    if path.is_dir():
        return f"folder:{path.resolve()}"
    if path.is_file():
        return f"csv:{path.resolve()}"
    if not is_source(data):
        near = nearest_sources(data, Reading())
        raise DataError(f"no folder or table {data} here, nor a data set of that name; {near}")
    return data


def _configured(
    items: Sequence[str] | None, source: str, option: str, more: Sequence[str]
) -> Config:
    return configured(
        None, items, {"data": {"source": source}},
        reads=(*_DATA_KEYS, *more, "seed"), elsewhere={"data.source": option},
    )  # fmt: skip


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
