"""The backbones on a node: the server brings them once, and they are kept.

A device that trusts keys loads none whose exact bytes no valid signed statement vouches for,
wherever they come from: TorchScript must not be loaded before that is known, and the fingerprint,
which is computed from what was loaded, comes too late.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from client.trust import Trust
from common.backbone.frozen import (
    FrozenBackbone,
    backbone_file,
    load_by_fingerprint,
)
from common.cache import note_use
from common.errors import SignatureError
from common.files import write_atomic
from common.messages import BackboneRequest
from common.signing.statement import Signed, Statement, read_signed

__all__ = ["Backbones"]


@lru_cache(maxsize=2)  # the nodes of a simulation share it
def _load(fingerprint: str, cache: Path) -> FrozenBackbone | None:
    return load_by_fingerprint(fingerprint, cache)


@dataclass(frozen=True)
class Backbones:
    """Those in a cache.

    Attributes:
        cache: folder.
        trust: None: what is not signed is taken too.
    """

    cache: Path
    trust: Trust | None

    def get(self, fingerprint: str) -> FrozenBackbone | None:
        """The backbone of this fingerprint; None: the server must bring it.

        Raises:
            SignatureError: it is here, and must not be used, or no longer.
        """
        if self.trust is not None:
            return self._get_signed(fingerprint, self.trust)
        backbone = _load(fingerprint, self.cache)
        if backbone is None:
            _load.cache_clear()  # it may arrive later
        return backbone

    def receive(self, request: BackboneRequest) -> bool:
        """Take what a message brings; whether the backbone is here then.

        Raises:
            SignatureError: it is refused; what is here stays.
            BackboneError: it is damaged; likewise.
        """
        if self.trust is not None:
            return self._receive_signed(request, self.trust)
        if request.data:
            FrozenBackbone.from_bytes(request.data, request.fingerprint)
            write_atomic(backbone_file(self.cache, request.fingerprint), request.data)
        return self.get(request.fingerprint) is not None

    def _get_signed(self, fingerprint: str, trust: Trust) -> FrozenBackbone | None:
        path = self._statement(fingerprint)
        try:
            statement = _check(trust, read_signed(path), fingerprint)
        except FileNotFoundError:
            return None
        data = self._bytes(statement)
        if data is None:
            return None
        trust.accept(statement)  # where the process was killed before it came to that
        return FrozenBackbone.from_bytes(data, fingerprint, opened=False)

    def _receive_signed(self, request: BackboneRequest, trust: Trust) -> bool:
        signed = Signed(request.statement, request.signature)
        statement = _check(trust, signed, request.fingerprint)
        if request.data:
            if not _is(request.data, statement):
                raise SignatureError(
                    f"{_name(request.fingerprint)} is refused: its {len(request.data):,} bytes are "
                    f"not those of {statement}, which was signed"
                )
            FrozenBackbone.from_bytes(request.data, request.fingerprint)
            write_atomic(backbone_file(self.cache, request.fingerprint), request.data)
        elif self._bytes(statement) is None:
            return False
        write_atomic(self._statement(request.fingerprint), signed.to_file())
        trust.accept(statement)
        return True

    def _bytes(self, statement: Statement) -> bytes | None:
        """What the cache holds, if it is what a statement says."""
        path = backbone_file(self.cache, statement.fingerprint)
        if not path.exists() or path.stat().st_size != statement.size:
            return None
        data = path.read_bytes()
        note_use(path.parent)
        return data if _is(data, statement) else None

    def _statement(self, fingerprint: str) -> Path:
        return backbone_file(self.cache, fingerprint).with_name("signed")


def _name(fingerprint: str) -> str:
    return f"backbone {fingerprint[:12]}"


def _check(trust: Trust, signed: Signed, fingerprint: str) -> Statement:
    """The statement on a backbone of this fingerprint.

    Raises:
        SignatureError: there is none that holds.
    """
    what = _name(fingerprint)
    statement = trust.check(signed, "backbone", what)
    if statement.fingerprint != fingerprint:
        raise SignatureError(f"{what} is refused: {_name(statement.fingerprint)} was signed")
    return statement


def _is(data: bytes, statement: Statement) -> bool:
    found = len(data), hashlib.sha256(data).hexdigest()
    return found == (statement.size, statement.sha256)
