"""Signatures beside a backbone's files for phones.

A signature is that of the newest version on the format's shelf, ``server/backbones/NAME.FORMAT``,
as it is for devices. So it may be made with a key on this machine or, by ``fedhead publish``, on
another.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from common.delivery.versions import shelf_of
from common.errors import SignatureError
from common.files import sha256_file, write_atomic
from common.phones import FORMATS, file_name
from common.signing.trust import TrustedKeys
from server.delivery.publish import Candidate, Sign, publish_version
from simulations.deploy.signing import SOON_SECONDS, backbones_of, elsewhere, problem_of
from simulations.deploy.trust import trusted_of

__all__ = ["candidate_of", "sign_formats"]

logger = logging.getLogger("fedhead")


def candidate_of(path: Path, name: str, kind: str, server: Path) -> Candidate:
    """A file for phones, to be signed.

    Args:
        path: the file, in the folder that its backbone's fingerprint names.
        name: the experiment's.
        kind: the format.
        server: the deployment's server folder.
    """
    shelf = shelf_of(backbones_of(server), f"{name}.{kind}")
    return Candidate(path, shelf, "backbone", "", path.parent.name, sha256_file(path))


def sign_formats(
    folder: Path, name: str, classes: Sequence[str], server: Path, sign: Sign | None
) -> None:
    """Put a signature beside each file, where the deployment signs.

    Args:
        folder: the backbone's; its name is the fingerprint.
        name: the experiment's.
        classes: the class list that the files are for.
        server: the deployment's server folder.
        sign: signs what has no signature, or one that ends soon; None: there is no key.

    Raises:
        SignatureError: phones would take none of the files.
    """
    trusted = TrustedKeys.where_there_are(trusted_of(server))
    if trusted is None and sign is None:
        return
    refused, taken = dict[str, str](), 0
    for kind in FORMATS:
        path = folder / file_name(kind, classes)
        if not path.exists():
            continue
        candidate = candidate_of(path, name, kind, server)
        problem, ends = problem_of(candidate, trusted, path.name)
        if sign and (problem or ends < time.time() + SOON_SECONDS):
            artifact = publish_version(candidate, sign).artifact
            logger.info(
                "%s is signed as version %d of %s", path.name, artifact.version, artifact.name
            )
        elif problem:
            refused[kind] = problem
            continue
        elif ends < time.time() + SOON_SECONDS:
            logger.warning("a signature of %s ends soon: give --key FILE", path.name)
        _bring(candidate)
        taken += 1
    if refused and not taken:
        kind, problem = next(iter(refused.items()))
        raise SignatureError(
            f"phones take signed files only, and none of backbone {folder.name[:12]} is validly "
            f"signed ({problem}): fedhead run EXPERIMENT.toml --deployment "
            f"{shlex.quote(str(server.parent))} --key FILE signs them; "
            f"{elsewhere(f'{name}.{kind}', server, '--format', kind)}"
        )
    for problem in refused.values():
        logger.warning("%s: phones will not take it; give --key FILE", problem)


def _bring(candidate: Candidate) -> None:
    """Copy the signature of the shelf's newest version, which is this file, beside it."""
    artifact = candidate.newest()
    if artifact is None or artifact.signed is None:
        return
    signed = artifact.signed
    for what, content in ("statement", signed.statement), ("signature", signed.signature):
        # A phone that fetches between these two refuses it, and comes again.
        beside = _beside(candidate.source, what)
        if not beside.exists() or beside.read_bytes() != content:
            write_atomic(beside, content)


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f"{path.name}.{what}")
