"""Ranges of numbers that several sections have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic_core import CoreSchema, core_schema

__all__ = ["Auto", "Count", "Fraction", "OrAuto", "Positive", "PositiveOrAuto"]

Auto = Literal["auto"]


@dataclass(frozen=True)
class OrAuto:
    """An annotation: a finite number in a range, or the word "auto". Range as in pydantic's Field.

    A union of Field and Literal would do, but names its two halves in errors.
    """

    gt: float | None = None
    ge: float | None = None
    le: float | None = None

    @property
    def range(self) -> str:
        """Words for the range."""
        ends = {"above": self.gt, "at least": self.ge, "at most": self.le}
        return " and ".join(f"{word} {end:g}" for word, end in ends.items() if end is not None)

    def __get_pydantic_core_schema__(self, _source: Any, _handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._checked)

    def _checked(self, value: object) -> float | Auto:
        if value == "auto":
            return "auto"
        if isinstance(value, int | float) and not isinstance(value, bool):
            number = float(value)
            low = (self.gt is None or number > self.gt) and (self.ge is None or number >= self.ge)
            if math.isfinite(number) and low and (self.le is None or number <= self.le):
                return number
        raise ValueError(f'must be "auto", or a number {self.range}')


Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
PositiveOrAuto = Annotated[float | Auto, OrAuto(gt=0)]
