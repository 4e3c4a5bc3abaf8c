"""A run's first head: zero, or the last head of a former run.

A head can only be used with the backbone that it was trained on. So both are copied together when
the new run is made. Afterwards the former run may continue, move or be removed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.backbone.frozen import FrozenBackbone
from common.config import Config
from common.errors import DamagedError, RunError
from common.files import write_atomic
from common.readback import own_check
from common.types import Head
from server.export.run_model import keep_backbone, kept_backbone
from server.record.checkpoint import load_latest
from server.record.replaced import replaced_of
from server.record.runfolder import HEAD, read_config, read_run_json, resume_command

__all__ = ["FormerHead", "first_head", "former_head", "last_head"]

logger = logging.getLogger("fedhead")

_FILE = "first-head.safetensors"


@dataclass(frozen=True, eq=False)
class FormerHead:
    """The head that a run starts from, with its backbone.

    Attributes:
        head: the former run's last head.
        classes: names of the head's rows.
        fingerprint: fingerprint of the backbone that it was trained on.
        source: the former run's folder, as the configuration names it.
        backbone: that backbone's file; None: it was not kept.
    """

    head: Head
    classes: tuple[str, ...]
    fingerprint: str
    source: str
    backbone: Path | None = None

    @property
    def sha256(self) -> str:
        """Hex digest over everything but the backbone, which has its fingerprint."""
        content = [self.head.sha256, self.classes, self.fingerprint, self.source]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def keep(self, path: Path) -> None:
        """Write head and backbone into a new run's folder."""
        if self.backbone:
            keep_backbone(self.backbone, path)
        metadata = {
            "fingerprint": self.fingerprint,
            "classes": json.dumps(self.classes),
            "source": self.source,
            "sha256": self.sha256,
        }
        arrays = {"weight": self.head.weight, "bias": self.head.bias}
        write_atomic(path / _FILE, save(arrays, metadata))


def last_head(path: Path) -> Head:
    """A run's final head, or the last checkpoint's head if the run is unfinished.

    Raises:
        RunError: there is no head, or it is damaged.
    """
    file = path / "head.safetensors"
    if file.exists():
        try:
            arrays = HEAD.read(file)
        except DamagedError as exc:
            raise RunError(f"{exc}: {resume_command(path)} writes it again") from exc
        return Head(arrays["weight"], arrays["bias"])
    checkpoint = load_latest(path / "checkpoint")
    if checkpoint is None:
        raise RunError(f"{path} has no finished round yet")
    return checkpoint.head


def former_head(config: Config, path: Path) -> FormerHead | None:
    """The head that ``strategy.init-from`` names; None: there is none, or it is copied already.

    Args:
        config: the new run's configuration.
        path: the new run's folder, which may be the former run's place.

    Raises:
        RunError: there is no such run, it has no head, or its [backbone] differs.
    """
    source = config.strategy.init_from
    if not source or (path / _FILE).exists():
        return None
    run = Path(source).expanduser().resolve()
    run = replaced_of(run) if run == path else run
    if not (run / "config.toml").exists():
        raise RunError(f"strategy.init-from: {source} is not a run (config.toml is missing)")
    _check_section(config, read_config(run), source)
    head, known = last_head(run), read_run_json(run)
    return FormerHead(
        head,
        classes=tuple(known["classes"]),  # written before the first round
        fingerprint=str(known["fingerprint"]),
        source=source,
        backbone=kept_backbone(run),
    )


def _check_section(config: Config, former: Config, source: str) -> None:
    ours, theirs = (
        {
            **c.backbone.model_dump(by_alias=True),
            # The values in use: an unset key means the architecture's own value.
            **dict(zip(("mean", "std"), c.backbone.normalization(), strict=True)),
        }
        for c in (config, former)
    )
    if differing := [
        f"backbone.{key}={value!r}, but {theirs[key]!r} there"
        for key, value in ours.items()
        if value != theirs[key]
    ]:
        raise RunError(
            f"strategy.init-from: the head of {source} is of another backbone: "
            + "; ".join(differing)
        )


def first_head(path: Path, backbone: FrozenBackbone, classes: Sequence[str]) -> Head:
    """A run's head before its first round.

    Args:
        path: the run folder.
        backbone: the run's backbone.
        classes: names of the run's classes.

    Returns:
        A head with the former run's rows for classes that both runs have, and zeros for others.

    Raises:
        RunError: the former head is damaged, is for another backbone, or has no class in common.
    """
    zeros = Head.zeros(len(classes), backbone.spec.num_features)
    if not (path / _FILE).exists():
        return zeros
    former = _read(path / _FILE)
    if former.fingerprint != backbone.fingerprint:
        raise RunError(
            f"the head of {former.source} is for backbone {former.fingerprint[:12]}, this run's "
            f"is {backbone.fingerprint[:12]}: other weights, packages or calibration images"
        )
    row_of = {name: row for row, name in enumerate(former.classes)}
    known = [name for name in classes if name in row_of]
    if not known:
        raise RunError(
            f"the head of {former.source} has other classes: {_few(former.classes)}; "
            f"this run's are {_few(classes)}"
        )
    _tell(former, classes, known)
    matrix = zeros.matrix.copy()
    for row, name in enumerate(classes):
        if name in row_of:
            matrix[row] = former.head.matrix[row_of[name]]
    return Head.from_matrix(matrix)


def _tell(former: FormerHead, classes: Sequence[str], known: Sequence[str]) -> None:
    words = f"the first head is that of {former.source}: {len(known)} of {len(classes)} classes"
    if new := [name for name in classes if name not in known]:
        words += f"; new ones, which start at zero: {_few(new)}"
    if gone := [name for name in former.classes if name not in known]:
        words += f"; left out: {_few(gone)}"
    logger.info("%s", words)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@own_check("first-head.safetensors of a run")
def _read(file: Path) -> FormerHead:
    try:
        with safe_open(file, "np") as content:
            said = content.metadata()
            head = Head(content.get_tensor("weight"), content.get_tensor("bias"))
        classes = tuple(map(str, json.loads(said["classes"])))
        former = FormerHead(head, classes, said["fingerprint"], said["source"])
        if said["sha256"] != former.sha256:
            raise ValueError("its content has changed since it was written")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as exc:
        raise RunError(f"{file} is damaged ({exc})") from exc
    return former
