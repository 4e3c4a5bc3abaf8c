"""Loads files of ``fedhead export``, each by its own runtime."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.backbone._deprecations import accepted_deprecations
from common.backbone.frozen import quantized_engine
from common.errors import ExportError, MissingExtraError
from common.files import sha256_file
from common.images import ByteArray
from common.statistics import EXACT_ROWS
from common.types import FloatArray
from server.export.card import Card, read_card, read_card_beside
from server.record.replaced import recover

__all__ = ["Exported", "exported"]

Run = Callable[[ByteArray], FloatArray]

# Kinds of files that cannot hold their card. Torch's files hold it, whatever their name.
_CARD_BESIDE = (".onnx", ".pte", ".safetensors")


@dataclass(frozen=True, eq=False)
class Exported:
    """A file that is ready to run.

    Attributes:
        path: the file.
        card: the file's card.
        run: from uint8 (n, 3, S, S) to float32 logits (n, K), computed by the runtime.
    """

    path: Path
    card: Card
    run: Run

    def logits(self, pixels: ByteArray) -> FloatArray:
        """Logits of square images.

        Args:
            pixels: uint8 (n, 3, S, S), RGB, S from the card.

        Returns:
            float32 (n, K).

        Raises:
            ExportError: the file does not run, or contradicts its card.
        """
        try:
            logits = self.run(pixels)
        except Exception as exc:  # each runtime has its own exceptions
            raise ExportError(f"{self.path}: does not run ({_last_line(exc)})") from exc
        expected = (len(pixels), len(self.card.classes))
        if logits.shape != expected:
            raise ExportError(f"{self.path}: logits are {logits.shape}, expected {expected}")
        return logits


@contextmanager
def exported(path: Path) -> Iterator[Exported]:
    """Load a file, so that it can be run inside the block.

    Args:
        path: model.pt, device.pt, device.ptl, model.onnx, model.pte or device.pte; or a run
            folder, for its model.pt.

    Raises:
        ExportError: the file is damaged, is not an export of fedhead, or has no card.
        MissingExtraError: its runtime is not installed.
        BackboneError: this torch does not have the card's engine.
    """
    recover(path.resolve())
    if path.is_dir():
        path /= "model.pt"
        if not path.exists():
            raise ExportError(f"{path} does not exist: fedhead export {path.parent}")
    elif not path.exists():
        kind, colon, _ = str(path).partition(":")
        prefix = kind in ("file", "folder") and colon
        hint = f"; give the path alone, without {kind}:" if prefix else ""
        raise ExportError(f"{path}: cannot be read (there is no such file{hint})")
    card = _card(path)
    load = _LOADERS.get(card.target)
    if load is None:
        raise ExportError(f"{path} is only a {card.target}, which cannot classify images")
    with ExitStack() as stack:
        if card.target in ("model", "device", "lite"):
            stack.enter_context(quantized_engine(card.engine))
            stack.enter_context(torch.no_grad())
            stack.enter_context(accepted_deprecations())
        try:
            run = load(path)
        except MissingExtraError:
            raise
        except Exception as exc:
            message = f"{path}: its runtime cannot load it ({_last_line(exc)})"
            raise ExportError(message) from exc
        yield Exported(path, card, run)


def _card(path: Path) -> Card:
    if path.suffix not in _CARD_BESIDE:
        return read_card(path)
    try:
        sha256 = sha256_file(path)
    except OSError as exc:
        raise ExportError(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    return read_card_beside(path, sha256)


def _torch(path: Path) -> Run:
    model: Callable[..., Any] = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    return lambda pixels: _array(model(torch.from_numpy(pixels)))


def _lite(path: Path) -> Run:
    from torch.jit.mobile import _load_for_lite_interpreter

    model = _load_for_lite_interpreter(str(path))  # type: ignore[no-untyped-call]
    return lambda pixels: _array(model.run_method("forward", torch.from_numpy(pixels)))


def _onnx(path: Path) -> Run:
    _need("onnxruntime", "onnx", path)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda pixels: np.asarray(session.run(None, {"images": pixels})[0])


def _executorch(path: Path) -> Run:
    forward = _program(path)("forward")
    return lambda pixels: _array(torch.cat([forward(i)[0] for i in _single(pixels)]))


def _device_pte(path: Path) -> Run:
    load = _program(path)
    features, predict, (head,) = load("features"), load("predict"), load("head")()

    def run(pixels: ByteArray) -> FloatArray:
        q = torch.cat([features(image)[0] for image in _single(pixels)])
        return _array(torch.cat([predict(rows, head)[0] for rows in torch.split(q, EXACT_ROWS)]))

    return run


def _program(path: Path) -> Callable[[str], Callable[..., list[torch.Tensor]]]:
    """Loads a method of a file by its name."""
    _need("executorch", "executorch", path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import warns about itself
        import executorch.kernels.quantized  # noqa: F401  # operators that the core runtime lacks
        from executorch.runtime import Runtime

    program = Runtime.get().load_program(str(path))

    def load(name: str) -> Callable[..., list[torch.Tensor]]:
        method = program.load_method(name)
        # The next call overwrites the results.
        return lambda *inputs: [output.clone() for output in method.execute(inputs)]

    return load


def _single(pixels: ByteArray) -> tuple[torch.Tensor, ...]:
    """Images one by one, as the files take them."""
    return torch.split(torch.from_numpy(pixels), 1)


_LOADERS: Mapping[str, Callable[[Path], Run]] = {
    "model": _torch,
    "device": _torch,
    "lite": _lite,
    "onnx": _onnx,
    "executorch": _executorch,
    "device-pte": _device_pte,
}


def _array(logits: torch.Tensor) -> FloatArray:
    array: FloatArray = logits.numpy()
    return array


def _need(package: str, extra: str, path: Path) -> None:
    if find_spec(package) is None:
        raise MissingExtraError(package, extra, str(path))


def _last_line(exc: Exception) -> str:
    # TorchScript puts its own traceback first.
    return (str(exc).strip().splitlines() or [type(exc).__name__])[-1]
