"""Ranges of numbers that several sections have."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

__all__ = ["Count", "Fraction", "Positive"]

Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
