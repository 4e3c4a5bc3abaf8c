"""The smallest and largest values that a key or an argument can have."""

from __future__ import annotations

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from common.config.experiment import Config

__all__ = ["bounds", "bounds_of_key"]


def bounds(field: FieldInfo) -> set[float]:
    """The ends of its range that a value can lie on; of "above 0" there is none."""
    step = 1 if field.annotation is int else None
    found = []
    for one in field.metadata:
        found += [getattr(one, end, None) for end in ("ge", "le")]
        if step and hasattr(one, "gt"):
            found.append(one.gt + step)
        if step and hasattr(one, "lt"):
            found.append(one.lt - step)
    return {float(end) for end in found if end is not None}


def bounds_of_key(key: str) -> set[float]:
    """The same of an experiment's dotted key; none of one that there is not.

    >>> bounds_of_key("train.momentum"), bounds_of_key("train.lr")
    ({0.0}, set())
    """
    *sections, name = key.replace("-", "_").split(".")
    model: type[BaseModel] = Config
    for section in sections:
        field = model.model_fields.get(section)
        if not (field and isinstance(field.annotation, type)):
            return set()
        if not issubclass(field.annotation, BaseModel):
            return set()
        model = field.annotation
    return bounds(model.model_fields[name]) if name in model.model_fields else set()
