"""Reads each layer's time from the profiler's trace."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import ExportError

__all__ = ["Layer", "layers", "time_by_kind"]

_ALONE = 0.75  # share of the layer's time; the rest is the reading of scales and the like
_SEGMENT = re.compile(r"([^.()]+)\([^()]*\)")


@dataclass(frozen=True)
class Layer:
    """One module of the network.

    Attributes:
        name: its path in the model; "" for the model's own work between its modules.
        operator: the torch operator that takes most of the time; "and more" if others matter too.
        shape: shape of that operator's first input.
        kernel: a convolution's outputs, inputs per group, height, width; otherwise empty.
        milliseconds: time of all operators of the module together; median over the calls.
        share: share of the whole call, in [0, 1].
    """

    name: str
    operator: str
    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    milliseconds: float
    share: float

    @property
    def kind(self) -> str:
        """The kind of computation, in words."""
        if not self.kernel:
            return self.operator.rpartition("::")[2]
        outputs, inputs, height, width = self.kernel
        depthwise = inputs == 1 and outputs == self.shape[1]
        return f"{height}x{width} {'depthwise' if depthwise else 'convolution'}"


def layers(trace: Path, calls: int, kernels: Mapping[str, Sequence[int]]) -> list[Layer]:
    """Each layer with its time, in the order of computation.

    Args:
        trace: a Chrome trace of torch's profiler, recorded with modules and shapes.
        calls: number of calls of the model in the trace.
        kernels: shape of each convolution's weight, by the layer's name.

    Raises:
        ExportError: the trace holds another number of calls.
    """
    events = json.loads(trace.read_text())["traceEvents"]
    operators = sorted(
        (event for event in events if event.get("cat") == "cpu_op"), key=lambda event: event["ts"]
    )
    top = _outermost(operators)
    if len(top) != calls:
        raise ExportError(f"{trace}: {len(top)} calls of the model, expected {calls}")
    runs = [_one_call(operators, call) for call in top]
    names = list(runs[0])
    table = np.array([[run[name][0] for name in names] for run in runs])  # microseconds
    typical = np.median(table, axis=0)
    total = float(typical.sum())
    return [
        Layer(name, *runs[0][name][1:], tuple(kernels.get(name, ())), us / 1000, us / total)
        for name, us in zip(names, typical.tolist(), strict=True)
    ]


def time_by_kind(found: Sequence[Layer]) -> dict[str, tuple[int, float, float]]:
    """Layers, milliseconds and share of each kind, the slowest kind first."""
    total: dict[str, tuple[int, float, float]] = {}
    for layer in found:
        count, milliseconds, share = total.get(layer.kind, (0, 0.0, 0.0))
        total[layer.kind] = (count + 1, milliseconds + layer.milliseconds, share + layer.share)
    return dict(sorted(total.items(), key=lambda item: -item[1][1]))


def _outermost(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The events that are not within another one, sorted by start."""
    found: list[Mapping[str, Any]] = []
    end = float("-inf")
    for event in events:
        if event["ts"] >= end:
            found.append(event)
            end = event["ts"] + event["dur"]
    return found


def _one_call(
    operators: Sequence[Mapping[str, Any]], call: Mapping[str, Any]
) -> dict[str, tuple[float, str, tuple[int, ...]]]:
    """Microseconds, main operator and its input's shape of each module, in order."""
    start, end = call["ts"], call["ts"] + call["dur"]
    inside = [event for event in operators if start <= event["ts"] < end and event is not call]
    own: dict[str, list[Mapping[str, Any]]] = {}
    for event in _outermost(inside):
        own.setdefault(_path(event), []).append(event)
    result = {}
    for name, events in own.items():
        main = max(events, key=lambda event: event["dur"])
        shape = next((tuple(dims) for dims in main["args"].get("Input Dims", []) if dims), ())
        total = sum(event["dur"] for event in events)
        alone = main["dur"] > _ALONE * total
        result[name] = (total, main["name"] + ("" if alone else " and more"), shape)
    return result


def _path(event: Mapping[str, Any]) -> str:
    """The module in which the operator was called, for example backbone.body.1.conv.0.

    TorchScript writes "TOP(Model)::forward.backbone(Int8Backbone)::forward. ...": each
    attribute with its type, which is left out here.
    """
    segments = _SEGMENT.findall(event["args"].get("Module Hierarchy", ""))
    return ".".join(segment.rpartition("::forward.")[2] for segment in segments[1:])
