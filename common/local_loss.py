"""A local loss of a user's own, ``train.loss = "module:function"``: what it takes and must return.

Only simulated clients have one. A device never runs code that a server names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from common.data_sources import function_of
from common.errors import ConfigError, DataError
from common.own_code import found_in

__all__ = ["LocalLoss", "check_loss", "find_loss"]

_PLAIN, _WITH_HEADS = ("logits", "labels"), ("logits", "labels", "head", "start")


@dataclass(frozen=True)
class LocalLoss:
    """A user's function.

    Attributes:
        path: "module:function", for errors.
        function: of (logits, labels) or (logits, labels, head, start) to a scalar Tensor.
        with_heads: whether it is the second, as regularizers need.
    """

    path: str
    function: Callable[..., object]
    with_heads: bool

    def gradient(self, x: Tensor, labels: Tensor, head: Tensor, start: Tensor) -> Tensor:
        """Of the loss of one batch, by automatic differentiation, (K, d + 1).

        Args:
            x: float (n, d + 1), features and a constant 1.
            labels: int64 (n,).
            head: float (K, d + 1), that is trained.
            start: (K, d + 1), the global head.

        Raises:
            ConfigError: the function fails or ends the program, changes what it is given, or
                returns anything but a finite scalar of the logits' dtype that depends on them or
                on the head; one line.
        """
        with torch.enable_grad():
            w = head.detach().clone().requires_grad_()
            logits = x @ w.t()
            given = (logits, labels.clone(), *((w, start.clone()) if self.with_heads else ()))
            before = [tensor.detach().clone() for tensor in given]
            try:
                loss = self.function(*given)
            except (Exception, SystemExit) as exc:  # whatever the user's code raises
                words = (str(exc).splitlines() or [""])[0]
                raise self._wrong(f"{type(exc).__name__}: {words}") from exc
            for name, tensor, old in zip(_WITH_HEADS, given, before, strict=False):
                if not torch.equal(tensor.detach(), old):
                    raise self._wrong(f"changes its {name} in place: work on a copy")
            checked = self._checked(loss, logits.dtype)
            (gradient,) = torch.autograd.grad(checked, w, allow_unused=True)
        if gradient is None:
            raise self._wrong("the loss depends neither on the logits nor on the head")
        found: Tensor = gradient
        return found

    def _checked(self, loss: object, dtype: torch.dtype) -> Tensor:
        if not isinstance(loss, Tensor):
            raise self._wrong(f"returned {type(loss).__name__}, expected a scalar Tensor")
        if loss.ndim:
            shape = tuple(loss.shape)
            raise self._wrong(f"returned a Tensor of shape {shape}, expected a scalar: a mean?")
        if loss.dtype != dtype:
            raise self._wrong(f"returned {loss.dtype}, expected {dtype} as the logits have")
        if not loss.requires_grad:
            raise self._wrong("the loss has no gradient: is it detached, or made of numbers?")
        if not torch.isfinite(loss):
            raise self._wrong(f"the loss is {loss.item():g}")
        return loss

    def _wrong(self, why: str) -> ConfigError:
        return ConfigError([f"train.loss={self.path!r}: {why}"])


@lru_cache  # a run keeps its loss, whatever happens to the file; see common.experiment.forget_data
def find_loss(path: str, root: str) -> LocalLoss | None:
    """The function that ``train.loss`` names; None for the cross-entropy.

    Args:
        path: "module:function", or another word.
        root: folder of the module; empty: wherever Python finds it.

    Raises:
        ConfigError: there is no such function, or it takes something else.
    """
    named = function_of(path)
    if named is None:
        return None
    folder = Path(root).expanduser() if root else None
    try:
        function = found_in(*named, folder, root_key="train.loss-root")
    except DataError as exc:
        raise ConfigError([f"train.loss={path!r}: {exc}"]) from exc
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    needed = [p.name for p in parameters if p.kind in kinds and p.default is p.empty]
    if len(needed) not in (len(_PLAIN), len(_WITH_HEADS)):
        raise ConfigError(
            [
                f"train.loss={path!r} takes ({', '.join(needed)}), expected "
                f"({', '.join(_PLAIN)}) or ({', '.join(_WITH_HEADS)})"
            ]
        )
    return LocalLoss(path, function, len(needed) == len(_WITH_HEADS))


def check_loss(loss: LocalLoss, num_classes: int) -> None:
    """Try a loss before the first round.

    Args:
        loss: is called with a small batch.
        num_classes: K.

    Raises:
        ConfigError: see ``LocalLoss.gradient``; or it gives another value for the same batch.
    """
    x = torch.linspace(-1, 1, 8 * 5).reshape(8, 5)
    labels = torch.arange(8) % num_classes
    head = torch.linspace(-1, 1, num_classes * 5).reshape(num_classes, 5)
    first, second = (loss.gradient(x, labels, head, torch.zeros_like(head)) for _ in range(2))
    if not torch.equal(first, second):
        # A run must repeat its bytes, also after a resume.
        raise ConfigError(
            [f"train.loss={loss.path!r}: gives another value for the same batch: is it random?"]
        )
