"""Reads a file of float weights as names and tensors; never runs code that the file may hold."""

from __future__ import annotations

import argparse
import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from common.errors import BackboneError

__all__ = ["read_tensors"]

_SAVE_ALONE = "save its weights alone: torch.save(network.state_dict(), 'weights.pth')"
# How other kinds of files begin, and what to do about them.
_OTHER_KINDS = (
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself: git lfs pull"),
    (rb"\s*<", "an HTML or XML page, not weights: the download went wrong"),
    (rb"\x1f\x8b", "compressed (gzip): unpack it first"),
    (rb"\x89HDF", "an HDF5 file (Keras), expected weights of torch"),
    (rb"....TFL3", "a TensorFlow Lite model, expected weights of torch"),
    # Field 1, the version of the format, then the producer or the next field.
    (rb"\x08[\x01-\x1f][\x12\x1a\x22\x3a\x42]", "an ONNX file, expected weights of torch"),
)
# Names of tensors that only a quantized network, or one prepared for quantization, has.
_QUANTIZED = re.compile(r"_packed_params|activation_post_process|fake_quant")

_log = logging.getLogger("fedhead")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a file of safetensors or of ``torch.save``, old formats included.

    A checkpoint that holds the state dict under a key, for example beside an optimizer's state, is
    unwrapped.

    Args:
        path: an existing file.

    Returns:
        Tensors by their names in the file.

    Raises:
        BackboneError: the file is of another kind, is damaged, holds pickled code, or does not
            hold exactly one state dict of floats.
    """
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise BackboneError(f"weights file {path} is empty")
    is_safetensors = start[8:9] == b"{"  # the first eight bytes are the header's length
    for pattern, what in _OTHER_KINDS:
        if not is_safetensors and re.match(pattern, start, re.DOTALL):
            raise BackboneError(f"weights file {path} is {what}")
    if path.suffix == ".safetensors" or is_safetensors:
        found: object = _read_safetensors(path)
    else:
        if start[:4] == b"PK\x03\x04":
            _check_archive(path)
        found = _read_pickle(path)
    state = _unwrapped(found, path)
    for name, value in state.items():
        if _QUANTIZED.search(name) or (isinstance(value, Tensor) and value.is_quantized):
            raise BackboneError(
                f"weights file {path} holds a network that is quantized or prepared for "
                f"quantization ({name}); expected float weights, which fedhead quantizes itself"
            )
        if isinstance(value, Tensor) and (value.is_meta or value.layout != torch.strided):
            raise BackboneError(
                f"weights file {path}: {name} is sparse or without values, expected dense weights"
            )
        if isinstance(value, Tensor) and value.nbytes > value.untyped_storage().nbytes():
            raise BackboneError(
                f"weights file {path}: {name} claims {value.nbytes:,} bytes and has fewer"
            )
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as exc:
        raise BackboneError(f"weights file {path} is not a safetensors file: {exc}") from exc


def _check_archive(path: Path) -> None:
    """Refuse TorchScript programs, and content with a wrong checksum, which torch ignores."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            # torch does not compress. A compressed file could need any amount of memory.
            swells = any(file.file_size > file.compress_size for file in archive.infolist())
            damaged = None if swells else archive.testzip()
    except Exception as exc:  # on false headers, zipfile raises almost anything
        raise BackboneError(f"weights file {path} is damaged or cut off ({exc})") from exc
    if swells:
        raise BackboneError(
            f"weights file {path} is compressed, unlike files of torch.save: save it again"
        )
    if damaged is not None:
        raise BackboneError(f"weights file {path} is damaged (checksum of {damaged})")
    if any("/code/" in name for name in names):
        raise BackboneError(
            f"weights file {path} is a TorchScript program, expected weights: "
            f"torch.save(torch.jit.load('{path.name}').state_dict(), 'weights.pth')"
        )


def _read_pickle(path: Path) -> object:
    try:
        with (
            warnings.catch_warnings(),
            # A plain bag of settings, which many training scripts save beside the weights.
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            # torch's own remarks on old formats and pickles. A refused file gets one line below.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        found = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(exc))
        what = f"it needs code, {found[1]}, which is never run" if found else "it is damaged"
        raise BackboneError(f"weights file {path} is refused: {what}; {_SAVE_ALONE}") from exc
    # On a damaged file the reader raises any exception.
    except Exception as exc:
        reason = (str(exc).strip() or type(exc).__name__).splitlines()[0]
        raise BackboneError(f"weights file {path} cannot be read: {reason}") from exc


def _unwrapped(found: object, path: Path) -> Mapping[str, Any]:
    """The state dict itself; if there are several, the one that is not a moving average."""
    if not isinstance(found, Mapping):
        raise BackboneError(
            f"weights file {path} holds no state dict (names to tensors), "
            f"but a {type(found).__name__}"
        )
    named = {name: value for name, value in found.items() if isinstance(name, str)}
    if _holds_filters(named) or all(isinstance(value, Tensor) for value in named.values()):
        return named
    inside = {name: value for name, value in named.items() if _holds_filters(value)}
    if not inside:
        raise BackboneError(
            f"weights file {path} holds no state dict (names to tensors), "
            f"but {', '.join(list(named)[:5]) or 'nothing'}"
        )
    chosen = [name for name in inside if "ema" not in name.lower().split("_")] or list(inside)
    if len(chosen) > 1:
        raise BackboneError(
            f"weights file {path} holds {len(chosen)} state dicts ({', '.join(chosen)}): save "
            f"only the one to use, torch.save(checkpoint['{chosen[0]}'], 'weights.pth')"
        )
    for name in set(inside) - set(chosen):
        _log.info("%s: %s is read, not its moving average %s", path.name, chosen[0], name)
    return {name: value for name, value in inside[chosen[0]].items() if isinstance(name, str)}


def _holds_filters(value: object) -> bool:
    """Whether it holds a convolution's weights, as all state dicts of these networks do."""
    return isinstance(value, Mapping) and any(
        isinstance(name, str) and isinstance(tensor, Tensor) and tensor.ndim == 4
        for name, tensor in value.items()
    )
