"""Writes a run's backbone in the formats that phones can run, before the run starts.

::

    server/gateway/backbones/FINGERPRINT/
        device-CLASSES.pte, device-CLASSES.ptl   for ExecuTorch and the lite interpreter
        backbone.bin                             for PyTorch
        NAME.statement, NAME.signature           beside each, if the deployment signs
        about-CLASSES.json                       written last: what the files are for

CLASSES is a hash of the class list. A format that could not be written is tried again at each run.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.backbone.frozen import FrozenBackbone
from common.cache import keep_newest
from common.config import Config
from common.datasets import Dataset
from common.errors import (
    DamagedError,
    ExportError,
    FedheadError,
    MissingExtraError,
)
from common.experiment import experiment_dataset, experiment_features, held_out_positions
from common.files import sha256_file, write_atomic
from common.phones import FORMATS, GATEWAY, file_name
from common.readback import JsonFile
from common.types import Head
from server.delivery.publish import Candidate, Sign
from server.export.exporters import check_installed, export
from server.export.run_model import backbone_of_run, prepare, trained_model
from server.round.phones import Phones
from simulations.deploy.phone_signing import candidate_of, sign_formats
from simulations.deploy.settings import gateway_folder

__all__ = ["lacking", "phone_candidate", "phone_files"]

logger = logging.getLogger("fedhead")

_TARGETS = {"executorch": "device-pte", "lite": "lite"}
_ABOUT = JsonFile("about.json of a backbone for phones")
_KEPT = 5  # folders: phones may still train for earlier runs


def phone_files(config: Config, server: Path, sign: Sign | None, run: Path) -> Path | None:
    """Write what phones need for a run, unless it is there.

    Args:
        config: the run's configuration.
        server: the deployment's server folder.
        sign: signs the files, if they have no signature or it ends soon; None: there is no key.
        run: the run folder.

    Returns:
        The backbone's folder; None: the deployment has no gateway or no phones.

    Raises:
        SignatureError: phones take signed files only, and no format is validly signed.
        FedheadError: the backbone cannot be prepared.
        OSError: a file cannot be written.
    """
    phones = Phones(server)
    phones.refresh({path.stem for path in (server / "devices").glob("[!.]*.pub")})
    if not phones.names or not (server / "devices" / f"{GATEWAY}.pub").exists():
        return None
    dataset = experiment_dataset(config)
    folder = _written(config, dataset, server, backbone_of_run(run, config, dataset))
    sign_formats(folder, config.name, dataset.classes, server, sign)
    folder.touch()
    keep_newest(folder.parent, _KEPT)
    return folder


def phone_candidate(config: Config, server: Path, kind: str) -> Candidate:
    """One of the files that phones need for an experiment, written now if it is not there.

    Args:
        config: the experiment's configuration.
        server: the deployment's server folder.
        kind: the format, one of ``FORMATS``.

    Raises:
        MissingExtraError, ExportError: it cannot be written here.
        FedheadError: the backbone cannot be prepared.
        OSError: a file cannot be written.
    """
    dataset = experiment_dataset(config)
    folder = _written(config, dataset, server, prepare(config, dataset), only=kind)
    return candidate_of(folder / file_name(kind, dataset.classes), config.name, kind, server)


def _written(
    config: Config, dataset: Dataset, server: Path, backbone: FrozenBackbone, only: str = ""
) -> Path:
    """The backbone's folder, with one format, or with all that can be written here."""
    folder = gateway_folder(server) / "backbones" / backbone.fingerprint
    classes = dataset.classes
    about = {"classes": list(classes), "version": version("fedhead")}
    missing = lacking(folder, about)
    kinds = [kind for kind in missing if only in ("", kind)]
    if not kinds:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        path = folder / file_name(kind, classes)
        try:
            _write(path, kind, config, dataset, backbone)
        except (MissingExtraError, ExportError) as exc:
            path.unlink(missing_ok=True)  # of an earlier version
            if only:
                raise
            logger.warning("phones get no %s: %s", path.name, exc)
    left = {file_name(kind, classes) for kind in missing if kind not in kinds}
    files = {name: sha for name, sha in _digests(folder, classes).items() if name not in left}
    _ABOUT.write(_about_file(folder, classes), about | {"files": files})
    return folder


def lacking(folder: Path, about: Mapping[str, Any]) -> list[str]:
    """The formats that are to be written: those that are not there as they were written.

    Args:
        folder: the backbone's; its name is the fingerprint.
        about: classes and version.
    """
    classes = about["classes"]
    try:
        found = _ABOUT.read(_about_file(folder, classes))
    except (FileNotFoundError, DamagedError):
        found = {}
    same = {name: found.get(name) for name in about} == about
    files, there = found.get("files", {}) if same else {}, _digests(folder, classes)
    names = {kind: file_name(kind, classes) for kind in _TARGETS}
    kinds = [
        kind for kind, name in names.items() if name not in there or files.get(name) != there[name]
    ]
    return kinds if _is_backbone(folder) else ["torch", *kinds]


def _is_backbone(folder: Path) -> bool:
    """Whether the file for PyTorch is the folder's backbone, whoever wrote it."""
    try:
        data = (folder / file_name("torch", ())).read_bytes()
        return FrozenBackbone.from_bytes(data).fingerprint == folder.name
    except (FileNotFoundError, FedheadError):
        return False


def _about_file(folder: Path, classes: Sequence[str]) -> Path:
    device = Path(file_name("lite", classes)).stem
    return folder / f"{device.replace('device', 'about')}.json"


def _digests(folder: Path, classes: Sequence[str]) -> dict[str, str]:
    """SHA-256 of the files that are there."""
    paths = [folder / file_name(kind, classes) for kind in FORMATS]
    return {path.name: sha256_file(path) for path in paths if path.exists()}


def _write(
    path: Path, kind: str, config: Config, dataset: Dataset, backbone: FrozenBackbone
) -> None:
    if kind == "torch":
        write_atomic(path, backbone.to_bytes())
        return
    check_installed(_TARGETS[kind])
    head = Head.zeros(len(dataset.classes), backbone.spec.num_features)
    test = experiment_features(config, backbone).select(held_out_positions(config))
    export(trained_model(config, backbone, head, test), _TARGETS[kind], path)
