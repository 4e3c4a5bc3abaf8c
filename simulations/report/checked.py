"""Reading a run's files: a file that is missing, damaged or of another form is named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from common.errors import RunError
from common.readback import JsonFile

__all__ = ["Count", "Rate", "content_of", "parsed"]

Rate = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
M = TypeVar("M", bound=BaseModel)


def content_of(kind: JsonFile, file: Path) -> Mapping[str, Any]:
    """What a file of a kind holds.

    Raises:
        RunError, DamagedError: it is missing, or damaged.
    """
    try:
        return kind.read(file)
    except OSError as exc:
        raise RunError(f"{file} cannot be read ({exc.strerror})") from exc


def parsed(model: type[M], file: Path, content: Mapping[str, Any], where: str = "") -> M:
    """A file's content as a model; ``where`` is the place in the file, for errors.

    Raises:
        RunError: it is of another form.
    """
    try:
        return model.model_validate(content)
    except ValidationError as exc:
        first = exc.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise RunError(
            f"{file}{where} is damaged ({f'{key}: ' if key else ''}{first['msg']})"
        ) from exc
