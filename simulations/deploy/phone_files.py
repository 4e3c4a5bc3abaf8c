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
import shlex
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.backbone.frozen import FrozenBackbone
from common.cache import keep_newest
from common.config import Config
from common.datasets import Dataset
from common.delivery.versions import shelf_of
from common.errors import (
    DamagedError,
    ExportError,
    FedheadError,
    MissingExtraError,
    SignatureError,
)
from common.experiment import experiment_dataset, experiment_features, held_out_positions
from common.files import sha256_file, write_atomic
from common.phones import FORMATS, GATEWAY, file_name
from common.readback import JsonFile
from common.signing.statement import Signed
from common.signing.trust import TrustedKeys
from common.types import Head
from server.delivery.publish import Candidate, Sign, publish_version
from server.export.exporters import check_installed, export
from server.export.run_model import backbone_of_run, trained_model
from server.export.trained import TrainedModel
from server.round.phones import Phones
from simulations.deploy.settings import gateway_folder
from simulations.deploy.signing import SOON_SECONDS, backbones_of
from simulations.deploy.trust import trusted_of

__all__ = ["lacking", "phone_files"]

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
    backbone = backbone_of_run(run, config, dataset)
    folder = gateway_folder(server) / "backbones" / backbone.fingerprint
    about = {"classes": list(dataset.classes), "version": version("fedhead")}
    if kinds := lacking(folder, about):
        _write(folder, kinds, config, dataset, backbone)
        _ABOUT.write(
            _about_file(folder, dataset.classes),
            about | {"files": _digests(folder, dataset.classes)},
        )
    _sign_all(folder, config.name, dataset.classes, server, sign)
    folder.touch()
    keep_newest(folder.parent, _KEPT)
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
    folder: Path,
    kinds: Sequence[str],
    config: Config,
    dataset: Dataset,
    backbone: FrozenBackbone,
) -> None:
    """Write formats, as far as they can be written here."""
    folder.mkdir(parents=True, exist_ok=True)
    if "torch" in kinds:
        write_atomic(folder / file_name("torch", ()), backbone.to_bytes())
    model: TrainedModel | None = None
    for kind in (kind for kind in kinds if kind in _TARGETS):
        path = folder / file_name(kind, dataset.classes)
        try:
            check_installed(_TARGETS[kind])
            model = model or _untrained(config, dataset, backbone)
            export(model, _TARGETS[kind], path)
        except (MissingExtraError, ExportError) as exc:
            path.unlink(missing_ok=True)  # of an earlier version
            logger.warning("phones get no %s: %s", path.name, exc)


def _untrained(config: Config, dataset: Dataset, backbone: FrozenBackbone) -> TrainedModel:
    head = Head.zeros(len(dataset.classes), backbone.spec.num_features)
    test = experiment_features(config, backbone).select(held_out_positions(config))
    return trained_model(config, backbone, head, test)


def _sign_all(
    folder: Path, name: str, classes: Sequence[str], server: Path, sign: Sign | None
) -> None:
    """Put a signature beside each file, where the deployment signs.

    Raises:
        SignatureError: phones would take none of the files.
    """
    trusted = TrustedKeys.where_there_are(trusted_of(server))
    if trusted is None and sign is None:
        return
    refused, taken, fingerprint = dict[str, str](), 0, folder.name
    for kind in FORMATS:
        path = folder / file_name(kind, classes)
        if not path.exists():
            continue
        problem, ends = _problem(path, trusted, fingerprint)
        if sign and (problem or ends < time.time() + SOON_SECONDS):
            signed = _signed(
                path, shelf_of(backbones_of(server), f"{name}.{kind}"), sign, fingerprint
            )
            # A phone that fetches between these two refuses it, and comes again.
            write_atomic(_beside(path, "statement"), signed.statement)
            write_atomic(_beside(path, "signature"), signed.signature)
        elif problem:
            refused[path.name] = problem
            continue
        taken += 1
    if refused and not taken:
        file, problem = next(iter(refused.items()))
        raise SignatureError(
            f"phones take signed files only, and none of backbone {fingerprint[:12]} is validly "
            f"signed ({file}: {problem}): fedhead run EXPERIMENT.toml --deployment "
            f"{shlex.quote(str(server.parent))} --key FILE signs them"
        )
    for file, problem in refused.items():
        logger.warning("phones will not take %s: %s: give --key FILE", file, problem)


def _problem(path: Path, trusted: TrustedKeys | None, fingerprint: str) -> tuple[str, int]:
    """Why phones would refuse a file (empty: they take it), and when its signature ends."""
    try:
        signed = Signed(*(_beside(path, what).read_bytes() for what in ("statement", "signature")))
    except FileNotFoundError:
        return "it is not signed", 0
    try:
        if trusted is None:
            return "nobody says whose signatures count", 0
        statement = trusted.verify(signed, path.name)
    except SignatureError as exc:
        return str(exc), 0
    if (statement.fingerprint, statement.sha256) != (fingerprint, sha256_file(path)):
        return "its signature is of another file", 0
    return "", statement.expires


def _signed(path: Path, shelf: Path, sign: Sign, fingerprint: str) -> Signed:
    candidate = Candidate(path, shelf, "backbone", "", fingerprint, sha256_file(path))
    artifact = publish_version(candidate, sign).artifact
    logger.info("%s is signed as version %d of %s", path.name, artifact.version, shelf.name)
    return artifact.signed or Signed(b"", b"")


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f"{path.name}.{what}")
