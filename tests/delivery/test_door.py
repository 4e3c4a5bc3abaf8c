"""Calls that say nothing, of strangers and of a device, shut nobody else out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from client.delivery.remote import DeliveryInterruptedError
from common.delivery.tokens import issue_token
from common.errors import DeliveryError
from server.delivery.reports import survey
from server.delivery.service import Limits

METHODS = ("Latest", "Download", "Report", "CheckIn")
SILENT = 40  # more than the service has threads


class Silent:
    """Calls with headers and no request, of each method in turn."""

    def __init__(self, port: int, authority: Path) -> None:
        credentials = grpc.ssl_channel_credentials(authority.read_bytes())
        self._channel = grpc.secure_channel(f"127.0.0.1:{port}", credentials)
        self._over = threading.Event()
        self.calls: list[Any] = []

    def call(self, token: str | None) -> None:
        metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        for number in range(SILENT):
            path = f"/fedhead.delivery.v1.Delivery/{METHODS[number % len(METHODS)]}"
            kind = self._channel.stream_stream if "Down" in path else self._channel.stream_unary
            make: Any = kind(path)
            send = make if "Down" in path else make.future
            self.calls.append(send(self._nothing(), metadata=metadata))

    def _nothing(self) -> Iterator[bytes]:
        self._over.wait()
        yield from ()

    def ended(self) -> list[grpc.StatusCode]:
        return [call.code() for call in self.calls if call.done()]

    def close(self) -> None:
        self._over.set()
        for call in self.calls:
            call.cancel()
        self._channel.close()


@pytest.fixture
def silent(deployment) -> Iterator[Callable[[int], Silent]]:
    made: list[Silent] = []

    def make(port: int) -> Silent:
        made.append(Silent(port, deployment.pki / "ca.crt"))
        return made[-1]

    yield make
    for each in made:
        each.close()


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("token", [None, "", "phone-1.guessed", "phone-9.guessed"])
def test_strangers_are_sent_away_before_they_say_anything(
    deployment, serve, silent, token: str | None
) -> None:
    deployment.publish(1)
    port = serve()
    strangers = silent(port)
    strangers.call(token)
    wait_until(lambda: len(strangers.ended()) == SILENT)
    # At once, the last ones found no thread free.
    refused = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert grpc.StatusCode.UNAUTHENTICATED in strangers.ended()
    assert set(strangers.ended()) <= refused
    with deployment.remote(port) as remote:
        assert remote.latest("model.bin").version == 1


def test_a_device_that_says_nothing_shuts_only_itself_out(
    deployment, serve, silent, tmp_path
) -> None:
    data = deployment.publish(1)
    artifact = survey(deployment.folder)[0].artifact
    issue_token(deployment.folder, "phone-2", tmp_path / "phone-2.token")
    port = serve()
    other = silent(port)
    other.call((tmp_path / "phone-2.token").read_text().strip())
    wait_until(lambda: len(other.ended()) == SILENT - 4)
    assert set(other.ended()) == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    with (
        deployment.remote(port) as remote,
        deployment.remote(port, token=tmp_path / "phone-2.token") as itself,
    ):
        assert remote.latest("model.bin") == artifact
        assert b"".join(remote.download(artifact, 0)) == data
        assert remote.check_in("fedhead 1", "0" * 64, {})[0]
        with pytest.raises(DeliveryInterruptedError, match="too many calls at once"):
            itself.latest("model.bin")
        # Its calls end: it is let in again.
        for call in other.calls:
            call.cancel()
        wait_until(lambda: version(itself) == 1)


def test_a_call_that_says_nothing_is_ended_after_a_while(deployment, serve, silent) -> None:
    calls = silent(serve(limits=Limits(2, 1e12, stall_seconds=0.3)))
    calls.call(deployment.token.read_text().strip())
    wait_until(lambda: len(calls.ended()) == SILENT)
    assert grpc.StatusCode.CANCELLED in calls.ended()


def version(remote) -> int:
    try:
        return int(remote.latest("model.bin").version)
    except DeliveryInterruptedError:
        return 0


def test_a_call_that_ends_without_a_request_is_refused(deployment, serve, silent) -> None:
    calls = silent(serve())
    calls._over.set()
    calls.call(deployment.token.read_text().strip())
    wait_until(lambda: len(calls.ended()) == SILENT)
    assert grpc.StatusCode.INVALID_ARGUMENT in calls.ended()


def test_a_stranger_learns_nothing_of_what_is_served(deployment, serve, tmp_path) -> None:
    (tmp_path / "none").touch(mode=0o600)
    with deployment.remote(serve(), token=tmp_path / "none") as remote:
        for name in ("model.bin", "../x"):
            with pytest.raises(DeliveryError, match="the token is not valid"):
                remote.latest(name)
