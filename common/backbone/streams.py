"""Find, by running a network once, which convolutions write to the same channels.

A stream is the sum of outputs of convolutions without an activation. It is found in the flow of
the data, so the network may keep its convolutions in any modules.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Stream", "streams"]

_log = logging.getLogger("fedhead")


@dataclass
class Stream:
    """Convolutions that add to the same channels, and those that read the channels.

    Attributes:
        writers: in order; the first makes the stream, each later one adds to it.
        readers: 1x1 convolutions, each with the numbers of the writers whose sum it reads.
    """

    writers: list[nn.Conv2d] = field(default_factory=list)
    readers: list[tuple[nn.Conv2d, tuple[int, ...]]] = field(default_factory=list)


@dataclass(frozen=True)
class _Sum:
    """A tensor without an activation: the numbers of the convolution calls whose sum it is."""

    calls: tuple[int, ...]


def streams(network: nn.Module, images: Tensor) -> list[Stream]:
    """Streams whose channels can be shifted and scaled: only convolutions write and read them.

    One line of the log names the streams that are left out, with the reason.

    Args:
        network: a float network in eval mode, with batch norm folded.
        images: normalized float (n, 3, H, W); one is enough.
    """
    flow = _Flow()
    handles = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_pre_hook(flow.begin))
            handles.append(module.register_forward_hook(flow.end))
    try:
        with torch.no_grad(), flow:
            flow.leaves(network(images))
    finally:
        for handle in handles:
            handle.remove()
    found, left_out = flow.sorted_out()
    if left_out:
        names = {module: name for name, module in network.named_modules()}
        said = [f"{', '.join(names[m] for m in modules)}: {why}" for modules, why in left_out]
        _log.info("channels not equalized: %s", "; ".join(said))
    return found


class _Flow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records which module reads which sum. Tensors that are no such sum have no entry."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: list[nn.Conv2d] = []
        self._sums: dict[int, _Sum] = {}
        self._readers: list[tuple[nn.Conv2d, _Sum]] = []
        self._reasons: dict[int, str] = {}  # why a call's channels are not equalized
        self._joined: list[_Sum] = []
        self._added: set[int] = set()  # calls whose results are part of a sum
        self._kept: list[Any] = []  # keeps objects alive, so that no id is used twice
        self._inside = False  # whether a convolution is running

    def begin(self, module: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
        """Record that a convolution reads its inputs."""
        self._inside = True
        read = self._sums.get(id(inputs[0]))
        if read is None:
            return
        plain = module.kernel_size == (1, 1) and module.padding in ((0, 0), 0, "valid", "same")
        if not plain or module.groups != 1:
            # Other convolutions pad with zeros, or mix only some of the channels.
            self._refuse(read, "read by a convolution that is not a plain 1x1")
        self._readers.append((module, read))

    def end(self, module: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Record that a convolution writes its output."""
        self._inside = False
        self._calls.append(module)
        self._sums[id(output)] = _Sum((len(self._calls) - 1,))
        self._kept.append(output)

    def leaves(self, output: Tensor) -> None:
        """Record the network's result."""
        if read := self._sums.get(id(output)):
            self._refuse(read, "the network's result")

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if self._inside:
            return out
        self._kept.append((args, out))
        name = func.name()
        operands = list(_tensors(args, kwargs or {}))
        read = [found for x in operands if (found := self._sums.get(id(x)))]
        added = name == "aten::add.Tensor" and not kwargs and len(operands) == 2
        if added:
            self._added.update(call for one in read for call in one.calls)
        if added and len(read) == 2 and operands[0].shape == operands[1].shape:
            total = _Sum(tuple(sorted({*read[0].calls, *read[1].calls})))
            if len(total.calls) < len(read[0].calls) + len(read[1].calls):
                self._refuse(total, "added to itself")
            self._joined.append(total)
            self._sums[id(out)] = total
            return out
        for one in read:
            other = (
                "added to something that convolutions do not write" if added else f"read by {name}"
            )
            self._refuse(one, other)
        if isinstance(out, Tensor):  # an operation in place has changed it
            self._sums.pop(id(out), None)
        return out

    def _refuse(self, read: _Sum, why: str) -> None:
        for call in read.calls:
            self._reasons.setdefault(call, why)

    def sorted_out(self) -> tuple[list[Stream], list[tuple[list[nn.Conv2d], str]]]:
        """Streams to equalize, in the order of their first writers, and those left out."""
        found, left_out = [], []
        for group in self._groups():
            readers = [(reader, read) for reader, read in self._readers if read.calls[0] in group]
            writers = [self._calls[call] for call in group]
            involved = [*writers, *(reader for reader, _ in readers)]
            why = next((self._reasons[call] for call in group if call in self._reasons), "")
            if any(self._calls.count(module) > 1 for module in involved):
                why = why or "a convolution is called several times"
            if not why and readers:
                place = {call: i for i, call in enumerate(group)}
                sums = [(reader, tuple(place[c] for c in read.calls)) for reader, read in readers]
                found.append(Stream(writers, sums))
            elif readers or self._added.intersection(group):  # otherwise an activation follows
                left_out.append((writers, why))
        return found, left_out

    def _groups(self) -> list[list[int]]:
        """Groups of calls whose results are added up, directly or indirectly."""
        group = {call: [call] for call in range(len(self._calls))}
        for total in self._joined:
            merged = sorted({call for one in total.calls for call in group[one]})
            group.update(dict.fromkeys(merged, merged))
        return [calls for first, calls in group.items() if calls[0] == first]


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    for value in (*args, *kwargs.values()):
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, Tensor):
                yield one
