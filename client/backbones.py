"""The backbones on a node: the server sends each once, and it is kept.

A device with trusted keys loads a backbone only if a valid signed statement is about exactly its
bytes. The fingerprint is not enough: it is computed from the loaded module, and TorchScript must
not be loaded before it is known to be safe.
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


@lru_cache(maxsize=2)  # a simulation's nodes share a backbone
def _load(fingerprint: str, cache: Path) -> FrozenBackbone | None:
    return load_by_fingerprint(fingerprint, cache)


@dataclass(frozen=True)
class Backbones:
    """The backbones in a cache.

    Attributes:
        cache: the cache's folder.
        trust: the trusted keys; None: unsigned backbones are accepted too.
    """

    cache: Path
    trust: Trust | None

    def get(self, fingerprint: str) -> FrozenBackbone | None:
        """The backbone of this fingerprint; None: the server must send it.

        Raises:
            SignatureError: it is here but must not be used, or not any more.
        """
        if self.trust is not None:
            return self._get_signed(fingerprint, self.trust)
        backbone = _load(fingerprint, self.cache)
        if backbone is None:
            _load.cache_clear()  # so that None is not remembered: the backbone may arrive later
        return backbone

    def receive(self, request: BackboneRequest) -> bool:
        """Keep the backbone that a message brings; return whether the backbone is here.

        Raises:
            SignatureError: it is refused; a stored backbone stays.
            BackboneError: it is damaged; a stored backbone stays.
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
        trust.accept(statement)  # again, in case the process was killed before it
        return FrozenBackbone.from_bytes(data, fingerprint, opened=False)

    def _receive_signed(self, request: BackboneRequest, trust: Trust) -> bool:
        signed = Signed(request.statement, request.signature)
        statement = _check(trust, signed, request.fingerprint)
        if request.data:
            if not _is(request.data, statement):
                raise SignatureError(
                    f"{_name(request.fingerprint)} is refused: its {len(request.data):,} bytes are "
                    f"not those of the signed {statement}"
                )
            FrozenBackbone.from_bytes(request.data, request.fingerprint)
            write_atomic(backbone_file(self.cache, request.fingerprint), request.data)
        elif self._bytes(statement) is None:
            return False
        write_atomic(self._statement(request.fingerprint), signed.to_file())
        trust.accept(statement)
        return True

    def _bytes(self, statement: Statement) -> bytes | None:
        """The cached bytes, if they are those of a statement."""
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
        SignatureError: there is no valid one.
    """
    what = _name(fingerprint)
    statement = trust.check(signed, "backbone", what)
    if statement.fingerprint != fingerprint:
        raise SignatureError(f"{what} is refused: {_name(statement.fingerprint)} was signed")
    return statement


def _is(data: bytes, statement: Statement) -> bool:
    found = len(data), hashlib.sha256(data).hexdigest()
    return found == (statement.size, statement.sha256)
