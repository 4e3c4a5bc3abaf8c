"""Signs published artifacts, with a key on this machine or on another."""

from __future__ import annotations

import logging
import shlex
import time
from pathlib import Path

from common.config import Config
from common.delivery.versions import Artifact, shelf_of
from common.errors import SignatureError
from common.files import sha256_file, write_atomic
from common.signing.statement import Signed, Statement, read_signed, utc
from common.signing.trust import TrustedKeys, key_id
from server.delivery.publish import Candidate, Sign, publish_version
from server.round.backbone_offer import newest_signed
from simulations.deploy import VALID_DAYS
from simulations.deploy.signing_key import read_key, sign
from simulations.deploy.trust import trusted_of

__all__ = [
    "SOON_SECONDS",
    "backbone_candidate",
    "backbones_of",
    "draft",
    "elsewhere",
    "problem_of",
    "signed_backbones",
    "signer",
]

logger = logging.getLogger("fedhead")

_DAY_SECONDS = 86_400

SOON_SECONDS = 30 * _DAY_SECONDS
"""A signature that ends sooner is renewed if the key is here; otherwise a warning is logged."""


def signer(
    server: Path, *, key: Path | None = None, signed: Path | None = None, days: int = VALID_DAYS
) -> Sign | None:
    """A function that signs candidates with a key that the deployment's devices trust.

    Args:
        server: the deployment's server folder.
        key: private key to sign with now.
        signed: a statement that was signed elsewhere.
        days: days for which a signature by ``key`` is valid.

    Returns:
        None if nothing is signed and the devices need no signature.

    Raises:
        SignatureError: the devices take signed artifacts only, but there is neither; or the key
            cannot be used.
    """
    trusted = TrustedKeys.where_there_are(trusted_of(server))
    if key is not None:
        private = read_key(key)
        mine = key_id(private.public_key())
        if trusted and mine not in trusted.keys:
            raise SignatureError(
                f"{key} is key {mine}, but the devices of {server} trust {trusted}; fedhead deploy "
                "--trust changes that"
            )

        def by_key(candidate: Candidate, artifact: Artifact) -> Signed:
            return sign(private, candidate.statement(artifact, *_period(days)))

        return by_key
    if signed is None:
        if trusted:
            raise SignatureError(
                f"the devices of {server} need a signature of {trusted}: give --key FILE; if the "
                "key is on another machine, give --statement FILE here, run fedhead keys sign "
                "FILE --key KEY there, then give --signed FILE.signed here"
            )
        return None
    brought = read_signed(signed)

    def elsewhere(candidate: Candidate, artifact: Artifact) -> Signed:
        statement = Statement.from_bytes(brought.statement)
        if trusted:
            trusted.verify(brought, str(signed))
        artifact.check(statement, candidate.kind, candidate.fingerprint)
        return brought

    return elsewhere


def draft(candidate: Candidate, path: Path, days: int = VALID_DAYS) -> Statement:
    """Write the statement to be signed elsewhere for a candidate if it were published now."""
    artifact = candidate.newest() or candidate.next()
    statement = candidate.statement(artifact, *_period(days))
    write_atomic(path, statement.to_bytes())
    return statement


def _period(days: int) -> tuple[int, int]:
    now = int(time.time())
    return now, now + days * _DAY_SECONDS


def backbone_candidate(config: Config, server: Path, run: Path | None = None) -> Candidate:
    """An experiment's backbone: the signed one if it is the same, or one found or prepared now.

    Args:
        config: the experiment's configuration.
        server: the deployment's server folder.
        run: folder of a run of it, which may hold its backbone; None: there is no run yet.

    Raises:
        FedheadError: it cannot be prepared, or the signed one is damaged.
    """
    from common.backbone.frozen import backbone_file
    from common.experiment import experiment_dataset
    from common.files import cache_root
    from server.export.run_model import backbone_of_run, kept_backbone, prepare

    folder, dataset = backbones_of(server), experiment_dataset(config)
    backbone = backbone_of_run(run, config, dataset) if run else prepare(config, dataset)
    shelf = shelf_of(folder, config.name)
    source = (run and kept_backbone(run)) or backbone_file(cache_root(), backbone.fingerprint)
    # If it is prepared twice, it is the same network but in other bytes.
    found = newest_signed(folder, config.name)
    if found is not None and found[1].fingerprint == backbone.fingerprint:
        kept = found[0].path(shelf)
        source = source if found[0].damage(kept) else kept
    return Candidate(source, shelf, "backbone", "", backbone.fingerprint, sha256_file(source))


def backbones_of(server: Path) -> Path:
    """The folder of signed backbones in a server's folder."""
    return server / "backbones"


def signed_backbones(
    config: Config,
    server: Path,
    key: Path | None,
    run: Path | None = None,
    sign_now: Sign | None = None,
) -> Path | None:
    """Check before a run starts that devices will take its backbone.

    Args:
        config: the run's configuration.
        server: the deployment's server folder.
        key: private key; it signs only if there is no signature or it ends soon.
        run: the run folder.
        sign_now: from ``signer`` with the key, if that is read already; then ``key`` is not.

    Returns:
        The folder of signed backbones; None: the devices need no signatures.

    Raises:
        SignatureError: the backbone is not signed by a key that the devices trust.
    """
    trusted = TrustedKeys.where_there_are(trusted_of(server))
    if trusted is None and key is None and sign_now is None:
        return None
    if key and not sign_now:
        sign_now = signer(server, key=key)  # a wrong key is an error even if unneeded
    candidate = backbone_candidate(config, server, run)
    what = f"backbone {config.name} ({candidate.fingerprint[:12]})"
    problem, ends = problem_of(candidate, trusted, what)
    if sign_now and (problem or ends < time.time() + SOON_SECONDS):
        artifact = publish_version(candidate, sign_now).artifact
        logger.info("%s is signed as version %d", what, artifact.version)
    elif problem:
        raise SignatureError(f"{problem}: give --key FILE; {elsewhere(config.name, server)}")
    elif ends < time.time() + SOON_SECONDS:
        logger.warning("the signature of %s ends on %s: give --key to renew it", what, utc(ends))
    return candidate.shelf.parent


def elsewhere(name: str, server: Path, *options: str) -> str:
    """The commands that sign a backbone's file with a key on another machine, in order.

    Args:
        name: of the statement's file.
        server: the deployment's server folder.
        options: of ``fedhead publish``, that choose the file.
    """
    # Not the run's config.toml: of a run that does not begin, no folder stays.
    publish = shlex.join(["fedhead", "publish", "EXPERIMENT.toml", "--to", str(server), *options])
    statement = shlex.quote(f"{name}.statement")
    return (
        f"if the key is on another machine, here: {publish} --statement {statement}; there: "
        f"fedhead keys sign {statement} --key KEY; then here: {publish} --signed {statement}.signed"
    )


def problem_of(candidate: Candidate, trusted: TrustedKeys | None, what: str) -> tuple[str, int]:
    """Why devices would refuse the signed candidate, and when that ends.

    Args:
        candidate: the backbone's file; it is taken only as the newest version on its shelf.
        trusted: the keys that count; None: any.
        what: words for it, for the error.

    Returns:
        The reason, empty if they take it; and when the signature ends, in seconds since 1970.
    """
    artifact = candidate.newest()
    if artifact is None:
        return f"{what} is not signed", 0
    try:
        signed = artifact.signed or Signed(b"", b"")
        if trusted:
            statement = trusted.verify(signed, what)
        else:
            statement = Statement.from_bytes(signed.statement)
        artifact.check(statement, "backbone", candidate.fingerprint)
    except SignatureError as exc:
        return str(exc), 0
    return "", statement.expires
