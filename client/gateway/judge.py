"""Whether a phone's result may be aggregated: the checks that the server makes of a device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from common.codecs import Codec, decode_array
from common.errors import FedheadError, ReplyError
from common.fields import check_plausible
from common.phones import phones_pb2 as pb
from common.plausible import Limits
from common.types import Layout
from common.validate import LARGEST, check_fields

__all__ = ["LostError", "Reason", "RefusedError", "check_claims", "check_row", "decoded"]

Reason = Literal[
    "not-finite", "above-norm", "wrong-shape", "foreign-fingerprint", "wrong-count", "impossible"
]
"""Why results are refused, as counters name it."""

Array = npt.NDArray[np.generic]
Fields = Mapping[str, Array]


class LostError(FedheadError):
    """What the gateway keeps of a client is damaged or missing; the phone is not to blame."""


class RefusedError(ReplyError):
    """A result that must not be aggregated.

    Attributes:
        reason: as counters name it.
    """

    def __init__(self, reason: Reason, words: str) -> None:
        super().__init__(f"{reason}: {words}")
        self.reason = reason


def check_claims(
    submission: pb.Submission, fingerprint: str, num_examples: int, losses: Iterable[float]
) -> None:
    """Refuse wrong numbers, before any array is looked at.

    Args:
        submission: what the phone says.
        fingerprint: of the round's backbone.
        num_examples: what the phone is held to.
        losses: those of its losses that count.

    Raises:
        RefusedError: names what was found and what was expected.
    """
    if submission.fingerprint != fingerprint:
        found = submission.fingerprint[:12]
        words = f"features are of backbone {found!r}, expected {fingerprint[:12]!r}"
        raise RefusedError("foreign-fingerprint", words)
    if submission.num_examples != num_examples:
        words = f"reports {submission.num_examples} examples, but described {num_examples}"
        raise RefusedError("wrong-count", words)
    for loss in losses:
        if not math.isfinite(loss):
            raise RefusedError("not-finite", "a loss is not finite")
        if not 0 <= loss <= LARGEST:
            raise RefusedError("impossible", f"a loss is {loss:g}")


def decoded(codec: Codec, payload: bytes, layout: Layout, seed: int, name: str) -> Array:
    """One array from what a phone sent.

    Raises:
        RefusedError: the bytes are not what the task asked for.
    """
    try:
        return decode_array(codec, payload, layout, seed, name)
    except FedheadError as exc:
        raise RefusedError("wrong-shape", str(exc)) from exc


def check_row(
    fields: Fields, layouts: Mapping[str, Layout], max_norm: float, limits: Limits
) -> None:
    """Refuse arrays that the server would refuse.

    Args:
        fields: one phone's arrays.
        layouts: what they must be.
        max_norm: bound on the norm of "delta"; 0: none.
        limits: bounds that follow from what the phone claims.

    Raises:
        RefusedError: names the array and what is wrong.
    """
    for name, array in fields.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise RefusedError("not-finite", f"{name} is not finite")
    try:
        check_fields(fields, layouts, 0.0)
    except ReplyError as exc:
        raise RefusedError("impossible", str(exc)) from exc
    try:
        check_fields(fields, layouts, max_norm)
        if "clipped_delta" in fields:
            check_plausible({"clipped_delta": fields["clipped_delta"]}, limits)
    except ReplyError as exc:
        raise RefusedError("above-norm", str(exc)) from exc
    try:
        check_plausible(fields, limits)
    except ReplyError as exc:
        raise RefusedError("impossible", str(exc)) from exc
