"""What a device accepts: only artifacts that its operator has signed, and never older ones.

A device's folder holds one or two public keys in ``trusted/``, put there at its setup. What the
device accepted last is in its state folder::

    accepted/model/model.pt     {"version": 3, "sha256": ...}
    accepted/backbone/mine
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from common.errors import DamagedError, SignatureError
from common.readback import JsonFile
from common.signing.statement import Kind, Signed, Statement
from common.signing.trust import TrustedKeys

__all__ = ["Trust"]

_ACCEPTED = JsonFile("version that a device accepted last")


@dataclass(frozen=True)
class Trust:
    """The keys that a device trusts, and what it has accepted.

    Attributes:
        keys: one or two trusted keys.
        accepted: folder that says which versions were accepted last.
    """

    keys: TrustedKeys
    accepted: Path

    @classmethod
    def of(cls, trusted: Path, state: Path) -> Self:
        """Read a device's folders.

        Raises:
            SignatureError: the folder of keys cannot be used.
        """
        return cls(TrustedKeys.read(trusted), state / "accepted")

    def check(
        self, signed: Signed | None, kind: Kind, what: str, before: tuple[int, str] = (0, "")
    ) -> Statement:
        """The statement, if it is signed, valid now, and not older than one accepted before.

        The last accepted version is accepted again for the same bytes, so that an interrupted
        fetch can continue and a signature can be renewed.

        Args:
            signed: the received statement and signature.
            kind: the kind that the statement must have.
            what: words for the signed thing, for the error.
            before: version and sha256 that were in use before there were keys.

        Raises:
            SignatureError: it is refused; one line says why.
        """
        statement = self.keys.verify(signed, what)
        if statement.kind != kind:
            raise SignatureError(f"{what} is refused: it was signed as a {statement.kind}")
        version, sha256 = max(before, self._last(kind, statement.name), key=lambda last: last[0])
        if statement.version < version:
            raise SignatureError(
                f"{what} is refused: {statement} is older than version {version}, which was "
                "accepted here before"
            )
        if statement.version == version and statement.sha256 != sha256:
            raise SignatureError(
                f"{what} is refused: another file was accepted as version {version} here before "
                f"(sha256 {sha256})"
            )
        return statement

    def accept(self, statement: Statement) -> None:
        """Write to the disk that nothing older than this is accepted any more."""
        if self._last(statement.kind, statement.name)[0] < statement.version:
            accepted = {"version": statement.version, "sha256": statement.sha256}
            _ACCEPTED.write(self._file(statement.kind, statement.name), accepted)

    def _last(self, kind: Kind, name: str) -> tuple[int, str]:
        try:
            accepted = _ACCEPTED.read(self._file(kind, name))
        except FileNotFoundError:
            return 0, ""
        except DamagedError as exc:
            raise SignatureError(str(exc)) from exc
        return int(accepted["version"]), str(accepted["sha256"])

    def _file(self, kind: Kind, name: str) -> Path:
        return self.accepted / kind / name
