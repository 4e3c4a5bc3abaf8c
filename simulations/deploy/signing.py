"""Who signs what an operator puts up: a key that is here, or one on another machine."""

from __future__ import annotations

import logging
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

__all__ = ["backbone_candidate", "backbones_of", "draft", "signed_backbones", "signer"]

logger = logging.getLogger("fedhead")

_DAY_SECONDS = 86_400
# A signature that ends sooner is renewed where the key is at hand, and spoken of where it is not.
_SOON_SECONDS = 30 * _DAY_SECONDS


def signer(
    server: Path, *, key: Path | None = None, signed: Path | None = None, days: int = VALID_DAYS
) -> Sign | None:
    """What has candidates signed, checked by the keys that the deployment's devices trust.

    Args:
        server: the deployment's server folder.
        key: private key that signs now.
        signed: statement that was signed elsewhere.
        days: how long a signature by ``key`` holds.

    Returns:
        None: nothing is signed, and the devices ask for nothing.

    Raises:
        SignatureError: the devices take signed artifacts only, and there is neither; or no key.
    """
    trusted = TrustedKeys.where_there_are(trusted_of(server))
    if key is not None:
        private = read_key(key)
        mine = key_id(private.public_key())
        if trusted and mine not in trusted.keys:
            raise SignatureError(
                f"{key} is key {mine}, and the devices of {server} trust {trusted}: fedhead "
                "deploy --trust makes them trust another"
            )

        def by_key(candidate: Candidate, artifact: Artifact) -> Signed:
            return sign(private, candidate.statement(artifact, *_period(days)))

        return by_key
    if signed is None:
        if trusted:
            raise SignatureError(
                f"the devices of {server} take only what {trusted} has signed: give --key FILE; "
                "if the key is elsewhere, --statement FILE, then there fedhead keys sign, then "
                "here --signed FILE"
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
    """Write what is to be signed elsewhere, for a candidate as it would be put up now."""
    artifact = candidate.newest() or candidate.next()
    statement = candidate.statement(artifact, *_period(days))
    write_atomic(path, statement.to_bytes())
    return statement


def _period(days: int) -> tuple[int, int]:
    now = int(time.time())
    return now, now + days * _DAY_SECONDS


def backbone_candidate(config: Config, server: Path, run: Path | None = None) -> Candidate:
    """An experiment's backbone, prepared now or found: what was signed before, if it is the same.

    Args:
        config: of the experiment.
        server: the deployment's server folder.
        run: folder of a run of it, which may have brought its backbone; None: there is none yet.

    Raises:
        FedheadError: it cannot be prepared, or what was signed before is damaged.
    """
    from common.backbone.frozen import backbone_file
    from common.experiment import experiment_dataset
    from common.files import cache_root
    from server.export.run_model import backbone_of_run, kept_backbone, prepare

    folder, dataset = backbones_of(server), experiment_dataset(config)
    backbone = backbone_of_run(run, config, dataset) if run else prepare(config, dataset)
    shelf = shelf_of(folder, config.name)
    source = (run and kept_backbone(run)) or backbone_file(cache_root(), backbone.fingerprint)
    # Prepared twice, it is the same network in other bytes.
    found = newest_signed(folder, config.name)
    if found is not None and found[1].fingerprint == backbone.fingerprint:
        kept = found[0].path(shelf)
        source = source if found[0].damage(kept) else kept
    return Candidate(source, shelf, "backbone", "", backbone.fingerprint, sha256_file(source))


def backbones_of(server: Path) -> Path:
    """Where a server's folder keeps signed backbones."""
    return server / "backbones"


def signed_backbones(
    config: Config, server: Path, key: Path | None, run: Path | None = None
) -> Path | None:
    """Make sure that devices take a run's backbone, before the run starts.

    Args:
        config: of the run.
        server: the deployment's server folder.
        key: private key; it signs only where there is no signature, or one that ends soon.
        run: the run folder.

    Returns:
        The folder of signed backbones; None: nobody asks for signatures.

    Raises:
        SignatureError: the backbone is not signed, or not by a key that the devices trust.
    """
    trusted = TrustedKeys.where_there_are(trusted_of(server))
    if trusted is None and key is None:
        return None
    sign_now = signer(server, key=key) if key else None  # a wrong key is said, needed or not
    candidate = backbone_candidate(config, server, run)
    what = f"backbone {config.name} ({candidate.fingerprint[:12]})"
    problem, ends = _problem(candidate, trusted, what)
    if sign_now and (problem or ends < time.time() + _SOON_SECONDS):
        artifact = publish_version(candidate, sign_now).artifact
        logger.info("%s is signed as version %d", what, artifact.version)
    elif problem:
        raise SignatureError(
            f"{problem}: give --key FILE; if the key is elsewhere, fedhead publish "
            f"EXPERIMENT.toml --to {server} --statement FILE, then there fedhead keys sign, then "
            "here the same with --signed FILE"
        )
    elif ends < time.time() + _SOON_SECONDS:
        logger.warning("the signature of %s ends on %s: give --key to renew it", what, utc(ends))
    return candidate.shelf.parent


def _problem(candidate: Candidate, trusted: TrustedKeys | None, what: str) -> tuple[str, int]:
    """Why devices would not take what is signed of a candidate, and when that ends."""
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
