"""[strategy.args]: the arguments of a strategy's function, checked by its annotations.

Text, negative numbers, lists and booleans are possible if they are annotated. An argument without
an annotation takes a number, a text, true or false, as in TOML.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, create_model
from pydantic.fields import FieldInfo

from common.config.bounds import bounds
from common.config.numbers import OrAuto
from common.errors import ConfigError
from common.toml_model import Section, validated

__all__ = ["Argument", "argument_bounds", "argument_names", "arguments", "checked_arguments"]

_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _plain(value: Any) -> Any:
    finite = not isinstance(value, float) or math.isfinite(value)
    if not (isinstance(value, bool | int | float | str) and finite):
        raise ValueError("must be a number, a text, true or false")
    return value


_Unannotated = Annotated[Any, AfterValidator(_plain)]


class _Arguments(Section):
    model_config = ConfigDict(use_attribute_docstrings=False)


@dataclass(frozen=True)
class Argument:
    """One argument of a strategy.

    Attributes:
        name: kebab-case, as in [strategy.args].
        default: in TOML's form; "" if the argument must be given.
        allowed: words for its type and range.
    """

    name: str
    default: str
    allowed: str


def argument_names(factory: Callable[..., object]) -> list[str]:
    """Names that [strategy.args] may hold for a strategy, kebab-case."""
    return [parameter.name.replace("_", "-") for parameter in _parameters(factory)]


def arguments(name: str, factory: Callable[..., object]) -> list[Argument]:
    """The arguments with their defaults and ranges.

    Raises:
        ConfigError: no TOML value can fit an annotation.
    """
    fields = _model(name, factory).model_fields
    return [
        Argument(key.replace("_", "-"), _default(field), _allowed(field))
        for key, field in fields.items()
    ]


def argument_bounds(name: str, factory: Callable[..., object]) -> dict[str, set[float]]:
    """For each argument the ends of its range that a value can lie on.

    Raises:
        ConfigError: no TOML value can fit an annotation.
    """
    fields = _model(name, factory).model_fields
    return {key.replace("_", "-"): bounds(field) for key, field in fields.items()}


def checked_arguments(
    name: str, factory: Callable[..., object], args: Mapping[str, Any]
) -> dict[str, Any]:
    """[strategy.args], checked and converted for a strategy's function.

    Args:
        name: the strategy's name, for errors.
        factory: the strategy's function.
        args: kebab-case keys.

    Raises:
        ConfigError: names all problems: unknown keys, values of a wrong type or out of range, an
            annotation that no TOML value can fit.
    """
    model = _model(name, factory)
    try:
        section = create_model("_Strategy", __base__=_Arguments, args=(model, ...))
        content = create_model("_Content", __base__=_Arguments, strategy=(section, ...))
        found: Any = validated(content, {"strategy": {"args": dict(args)}}, "")
    except ConfigError as exc:
        known = ", ".join(argument_names(factory)) or "none"
        hints = {
            "unknown key": f" ({name} knows: {known})",
            "a valid string": "; put it in quotes",
        }
        raise ConfigError(
            [p + "".join(h for word, h in hints.items() if word in p) for p in exc.problems]
        ) from exc
    except Exception as exc:  # annotations may hold a user's own code
        raise _unreadable(name, exc) from exc
    given = found.strategy.args
    return {key: getattr(given, key) for key in given.model_fields_set}


def _parameters(
    factory: Callable[..., object], *, evaluated: bool = False
) -> list[inspect.Parameter]:
    """The parameters that can be given by name."""
    by_name = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.signature(factory, eval_str=evaluated)
    return [parameter for parameter in signature.parameters.values() if parameter.kind in by_name]


def _model(name: str, factory: Callable[..., object]) -> type[BaseModel]:
    """The pydantic model of the arguments."""
    fields: dict[str, Any] = {}
    try:
        for parameter in _parameters(factory, evaluated=True):
            empty = parameter.annotation is parameter.empty
            annotation = _Unannotated if empty else parameter.annotation
            default = ... if parameter.default is parameter.empty else parameter.default
            if isinstance(default, FieldInfo):
                raise TypeError(
                    f"{parameter.name}: a Field belongs in the annotation, "
                    f"{parameter.name}: Annotated[float, Field(gt=0)] = 0.5"
                )
            fields[parameter.name] = (annotation, default)
        return create_model("_Args", __base__=_Arguments, **fields)
    except Exception as exc:  # annotations may hold a user's own code
        raise _unreadable(name, exc) from exc


def _unreadable(name: str, exc: Exception) -> ConfigError:
    words = (str(exc).splitlines() or [""])[0]
    return ConfigError([f"{name}: its arguments cannot be read: {type(exc).__name__}: {words}"])


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value = field.default
    return str(value).lower() if isinstance(value, bool) else str(value)


def _allowed(field: FieldInfo) -> str:
    """Words for the allowed values: "above 0", "a whole number, at least 1", "mean or median"."""
    annotation: Any = field.annotation
    if get_origin(annotation) is Literal:
        return " or ".join(map(str, get_args(annotation)))
    for one in field.metadata:
        if isinstance(one, OrAuto):
            return f"auto, or {one.range}"
    bounds = [
        f"{word} {getattr(one, key):g}"
        for one in field.metadata
        for key, word in _BOUNDS.items()
        if hasattr(one, key)
    ]
    if annotation is Any:
        return "a number, a text, true or false"
    kind = _KINDS.get(annotation, getattr(annotation, "__name__", "") or str(annotation))
    if get_origin(annotation):
        kind = str(annotation)
    return " and ".join(bounds) if bounds and annotation is float else ", ".join([kind, *bounds])
