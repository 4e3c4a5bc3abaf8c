"""The command line: ``fedhead predict``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import ConfigError, DataError
from common.files import shown, write_atomic
from common.progress import track
from fedhead.cli.terminal import JsonFlag, print_error

if TYPE_CHECKING:
    from server.export.predict import Prediction

__all__ = ["predict"]

_STDOUT = Path("-")


def predict(
    model: Annotated[
        Path,
        typer.Argument(help="A file that fedhead exported, or a run folder for its model.pt."),
    ],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")
    ],
    csv: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a table to this file; - is standard output."),
    ] = None,
    json_: JsonFlag = False,
) -> None:
    """Print the class and its probability for each image.

    An image that cannot be read is named and skipped, and the exit code is 1.
    """
    from server.export.exported import exported
    from server.export.predict import find_images, write_csv
    from server.export.predict import predict as predictions

    if csv is not None and json_:
        raise ConfigError(["--csv and --json exclude each other"])
    _check_table(csv)  # before the long work
    with exported(model) as loaded:
        found = find_images(images)
        answers = predictions(loaded, found)
        if json_ or csv not in (None, _STDOUT):  # otherwise the printed lines show the progress
            answers = track(answers, "Predicting", len(found))
        readable = _Readable(answers)
        if json_:
            _print_json(readable)
        elif csv is None:
            for p in readable:
                line = f"{shown(p.path)}  {shown(p.class_name)}  {p.probability:.3f}"
                print(line)
        elif csv == _STDOUT:
            write_csv(sys.stdout, readable)
        else:
            _write_file(csv, readable)
            print(f"{csv}: {len(found) - readable.errors:,} images")
    if readable.errors:
        print_error(f"{readable.errors:,} of {len(found):,} images not classified, named above")
        raise typer.Exit(1)


def _check_table(csv: Path | None) -> None:
    if csv in (None, _STDOUT):
        return
    if csv.is_dir():
        raise ConfigError([f"--csv {csv} is a folder, expected a file"])
    if not csv.parent.is_dir():
        raise ConfigError([f"--csv {csv}: there is no folder {csv.parent}"])


class _Readable:
    """The predictions among the answers. An error is printed at once and counted."""

    def __init__(self, answers: Iterable[Prediction | DataError]) -> None:
        self._answers, self.errors = answers, 0

    def __iter__(self) -> Iterator[Prediction]:
        for answer in self._answers:
            if isinstance(answer, DataError):
                self.errors += 1
                print_error(str(answer))
            else:
                yield answer


def _print_json(predictions: Iterable[Prediction]) -> None:
    rows = [
        {"image": shown(p.path), "class": p.class_name, "probability": p.probability}
        for p in predictions
    ]
    print(json.dumps(rows))


def _write_file(file: Path, predictions: Iterable[Prediction]) -> None:
    from server.export.predict import write_csv

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as stream:
            write_csv(stream, predictions)

    write_atomic(file, write)
