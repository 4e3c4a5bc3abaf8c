"""Finished models that a phone fetches through its gateway."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import grpc

from client.delivery.fetch import Fetched, fetch
from client.delivery.remote import Explained, read_authority, read_token
from client.delivery.shelf import Shelf
from client.phone.blobs import check_blob, checked_part, has_bytes
from client.phone.settings import PhoneFolder
from client.trust import Trust
from common.delivery.versions import Artifact
from common.errors import DeliveryError, ProtocolError
from common.phones.phones_pb2 import Blob, FetchRequest, LatestRequest, Model, Part
from common.phones.wire import CHANNEL_OPTIONS, LARGEST_CARD, LARGEST_MODEL, Stub
from common.signing.statement import Signed

__all__ = ["GatewayModels", "fetch_model"]

_SECONDS = 30.0  # for one call
_KEPT = 3  # versions


def fetch_model(folder: PhoneFolder, name: str) -> Fetched:
    """Update a finished model in a phone's folder.

    Args:
        folder: of the phone; its state holds ``models/NAME/current/NAME``.
        name: under which it was published.

    Raises:
        DeliveryError, SignatureError, OSError: as ``client.delivery.fetch.fetch``.
    """
    trust = Trust.of(folder.trusted, folder.state) if folder.trusted else None
    address = folder.settings.gateway
    models = GatewayModels(address, authority=folder.authority, token=folder.token)
    with closing(models):
        return fetch(models, Shelf(folder.state / "models", name), keep=_KEPT, trust=trust)


class GatewayModels:
    """A connection to a gateway, for its finished models; see ``client.delivery.fetch.Source``.

    Args:
        address: host and port; the host must be a name in the gateway's certificate.
        authority: file with PEM certificates of the only authorities to trust.
        token: file of the phone's token; refused if users other than its owner can read it.

    Raises:
        DeliveryError: a file does not hold a certificate or a token.
        OSError: a file cannot be read.
    """

    def __init__(self, address: str, *, authority: Path, token: Path) -> None:
        self._address, self._errors = address, Explained(address, authority)
        credentials = grpc.ssl_channel_credentials(read_authority(authority))
        self._metadata = (("authorization", f"Bearer {read_token(token)}"),)
        self._channel = grpc.secure_channel(address, credentials, CHANNEL_OPTIONS)
        self._stub = Stub(self._channel)

    def close(self) -> None:
        """End the connection."""
        self._channel.close()

    def latest(self, name: str) -> Artifact:
        """See ``Source.latest``."""
        model = self._newest(name)
        what = f"{self._address}: {name}"
        if model.name != name:
            raise DeliveryError(f"{what} was asked for, but the answer is {model.name[:80]!r}")
        try:
            check_blob(model.file, "its file", LARGEST_MODEL)
            check_blob(model.card, "its card", LARGEST_CARD)
            card = model.card.data or b"".join(self._parts(model.card, 0))
            if not has_bytes(model.card, card):
                raise ProtocolError("its card holds other bytes than its SHA-256 says")
            text = card.decode()
        except (ProtocolError, UnicodeDecodeError) as exc:
            raise DeliveryError(f"{what}: {exc}") from exc
        signed = Signed(model.statement, model.signature) if model.statement else None
        file = model.file
        return Artifact(name, model.version, file.size, file.sha256, text, signed)

    def _newest(self, name: str) -> Model:
        with self._errors.failures(name):
            model: Model = self._stub.latest(
                LatestRequest(name=name), metadata=self._metadata, timeout=_SECONDS
            )
        return model

    def download(self, artifact: Artifact, offset: int) -> Generator[bytes, None, None]:
        """See ``Source.download``."""
        self._newest(artifact.name)  # a gateway that was started again offers what is asked for
        try:
            yield from self._parts(Blob(sha256=artifact.sha256, size=artifact.size), offset)
        except ProtocolError as exc:
            raise DeliveryError(f"{self._address}: {artifact}: {exc}") from exc

    def _parts(self, blob: Blob, offset: int) -> Generator[bytes, None, None]:
        """A blob's bytes from an offset on, each part checked for its length and place."""
        while offset < blob.size:
            request = FetchRequest(sha256=blob.sha256, offset=offset)
            with self._errors.failures(f"blob {blob.sha256[:12]}"):
                part = self._part(request)
            data = checked_part(part, blob, offset)
            offset += len(data)
            yield data

    def _part(self, request: FetchRequest) -> Part:
        try:
            part: Part = self._stub.fetch(request, metadata=self._metadata, timeout=_SECONDS)
        except grpc.RpcError as exc:
            if isinstance(exc, grpc.Call) and exc.code() is grpc.StatusCode.NOT_FOUND:
                raise self._errors.interrupted(
                    request.sha256[:12], "it is not offered now"
                ) from exc
            raise
        return part
