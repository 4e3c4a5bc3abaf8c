"""Writes a run's backbone in the formats that phones can run, before the run starts.

::

    server/gateway/backbones/FINGERPRINT/
        device.pte, device.ptl, backbone.bin     for ExecuTorch, lite interpreter, PyTorch
        NAME.statement, NAME.signature           beside each, if the deployment signs
        about.json                               written last: what the files are for
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from common.backbone.frozen import FrozenBackbone
from common.cache import keep_newest
from common.config import Config
from common.datasets import Dataset
from common.delivery.versions import shelf_of
from common.errors import DamagedError, ExportError, MissingExtraError, SignatureError
from common.experiment import experiment_dataset, experiment_features, held_out_positions
from common.files import sha256_file, write_atomic
from common.phones import GATEWAY
from common.readback import JsonFile
from common.signing.statement import Signed
from common.signing.trust import TrustedKeys
from common.types import Head
from server.delivery.publish import Candidate, Sign, publish_version
from server.export.exporters import check_installed, export
from server.export.run_model import backbone_of_run, trained_model
from server.round.phones import Phones
from simulations.deploy.settings import gateway_folder
from simulations.deploy.signing import SOON_SECONDS, backbones_of
from simulations.deploy.trust import trusted_of

__all__ = ["FORMATS", "is_written", "phone_files"]

logger = logging.getLogger("fedhead")

FORMATS: Mapping[str, str] = {
    "executorch": "device.pte", "lite": "device.ptl", "torch": "backbone.bin",
}  # fmt: skip
"""Files by format, as client/gateway/backbones names them."""

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
    if not is_written(folder, about):
        _write(folder, config, dataset, backbone)
        _ABOUT.write(folder / "about.json", about | {"files": _digests(folder)})
    _sign_all(folder, config.name, server, sign, backbone.fingerprint)
    folder.touch()
    keep_newest(folder.parent, _KEPT)
    return folder


def is_written(folder: Path, about: Mapping[str, object]) -> bool:
    """Whether the files are there as they were written, for the same classes and version.

    Args:
        folder: the backbone's.
        about: classes and version.
    """
    try:
        found = _ABOUT.read(folder / "about.json")
    except (FileNotFoundError, DamagedError):
        return False
    return bool(found == {**about, "files": _digests(folder)})


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that are there."""
    paths = [folder / name for name in FORMATS.values()]
    return {path.name: sha256_file(path) for path in paths if path.exists()}


def _write(folder: Path, config: Config, dataset: Dataset, backbone: FrozenBackbone) -> None:
    """Write each format that can be written here."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FORMATS["torch"], backbone.to_bytes())
    head = Head.zeros(len(dataset.classes), backbone.spec.num_features)
    test = experiment_features(config, backbone).select(held_out_positions(config))
    model = trained_model(config, backbone, head, test)
    for kind, target in _TARGETS.items():
        path = folder / FORMATS[kind]
        try:
            check_installed(target)
            export(model, target, path)
        except (MissingExtraError, ExportError) as exc:
            path.unlink(missing_ok=True)  # of an earlier version
            logger.warning("phones get no %s: %s", path.name, exc)


def _sign_all(folder: Path, name: str, server: Path, sign: Sign | None, fingerprint: str) -> None:
    """Put a signature beside each file, where the deployment signs."""
    trusted = TrustedKeys.where_there_are(trusted_of(server))
    if trusted is None and sign is None:
        return
    for kind, file in FORMATS.items():
        path = folder / file
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
