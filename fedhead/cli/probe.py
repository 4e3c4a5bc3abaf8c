"""The command that looks at images before a deployment: ``fedhead probe``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import ConfigError
from fedhead.cli.sources import DataArgument, configured_source, source_of
from fedhead.cli.terminal import JsonFlag, near, print_all
from simulations.fine_tune.plan import DEFAULT, command_for

if TYPE_CHECKING:
    from common.backbone.blocks import Features

__all__ = ["probe"]


def probe(
    data: DataArgument,
    target: Annotated[
        float, typer.Option(min=0.01, max=0.999, help="Accuracy that you need.")
    ] = 0.9,
    examples: Annotated[int, typer.Option(min=10, help="Largest number of images.")] = 5000,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A key of \\[data] or \\[backbone]."),
    ] = None,
    sizes: Annotated[
        str | None,
        typer.Option(
            help="Input sizes to compare, in pixels; empty: compare nothing.",
            show_default="96, 160 and the configured one",
        ),
    ] = None,
    features: Annotated[str, typer.Option(help="Kinds of features to compare.")] = "",
    archs: Annotated[str, typer.Option(help="Backbones to compare.")] = "",
    fine_tune: Annotated[
        bool,
        typer.Option(
            "--fine-tune", help="Try what fine-tuning the recommended backbone would give; minutes."
        ),
    ] = False,
    out: Annotated[Path, typer.Option(help="File of the plot.")] = Path("probe.png"),
    json_: JsonFlag = False,
) -> None:
    """Estimate, before a deployment, what accuracy a head alone can reach on your images.

    Trains linear heads on the frozen int8 backbone's features, in cross-validation.
    """
    from common.plots import check_drawable
    from simulations.fine_tune.fine_tune import trained_weights
    from simulations.probe import compare_options, draw, judge, probe_data
    from simulations.probe.images import probe_images
    from simulations.probe.options import COMPARED, recommended
    from simulations.probe.probe_tables import as_json, tables
    from simulations.probe.tuned import probe_tuned

    check_drawable(out, purpose="drawing a probe")  # before the long work
    config = configured_source(set_, source_of(data), "DATA", ("backbone.*",))
    chosen = _sizes(sizes, config.backbone.input_size)
    networks = _networks(archs) or (config.backbone.arch,)
    kinds = _kinds(features, config.backbone.features)
    if fine_tune:
        trained_weights(config.backbone)  # refuses random ones before the long work
    images = probe_images(config, examples)
    found = probe_data(config, images)
    options = compare_options(
        config,
        images.fewer(COMPARED),
        archs=networks,
        sizes=chosen,
        features=kinds,
    )
    best = recommended(options).settings if options else config.backbone
    config = config.model_copy(update={"backbone": best})
    tuned = probe_tuned(config, DEFAULT, min(examples, COMPARED)) if fine_tune else None
    verdict = judge(found, target)
    shown = (found, verdict, options, tuned, command_for(data, best, set_ or ()))
    draw(found, target, out)
    if json_:
        print(json.dumps({**as_json(*shown), "plot": str(out.resolve())}))
        return
    print_all(tables(*shown))
    print(near(str(out.resolve())))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _sizes(text: str | None, own: int) -> tuple[int, ...]:
    """The value of --sizes; if it is not given, the usual ones and the configured one.

    Raises:
        ConfigError: an item is no input size.
    """
    from simulations.probe.options import INPUT_SIZES

    if text is None:
        return tuple(sorted({*INPUT_SIZES, own}))
    words = _words(text)
    if wrong := [word for word in words if not (word.isdecimal() and 32 <= int(word) <= 1024)]:
        raise ConfigError([f"--sizes {', '.join(wrong)}: expected pixels from 32 to 1024"])
    return tuple(sorted({int(word) for word in words}))


def _kinds(text: str, own: Features) -> tuple[Features, ...]:
    """The value of --features; if it is empty, the usual ones and the configured one.

    Raises:
        ConfigError: an item is no kind of features.
    """
    from common.backbone.blocks import NAMED_FEATURES
    from simulations.probe.options import FEATURE_KINDS

    words = _words(text)
    if wrong := [word for word in words if word not in NAMED_FEATURES]:
        known = ", ".join(NAMED_FEATURES)
        raise ConfigError([f"--features {', '.join(wrong)}: expected some of {known}"])
    if words:
        return tuple(kind for kind in NAMED_FEATURES if kind in words)
    return FEATURE_KINDS if own in FEATURE_KINDS else (*FEATURE_KINDS, own)


def _networks(text: str) -> tuple[str, ...]:
    """The value of --archs.

    Raises:
        BackboneError: there is no such backbone.
    """
    from common.backbone.architectures import architecture

    return tuple(architecture(word).name for word in _words(text))
