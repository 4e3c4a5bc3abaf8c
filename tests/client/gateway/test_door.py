"""Strangers and revoked phones cost the gateway little, and learn nothing."""

from __future__ import annotations

import logging
import socket
import ssl
import time
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from client.gateway import service
from common.delivery.tokens import revoke_token
from tests.client.gateway.actors import Deployment, Phone
from tests.client.gateway.test_presence import wait_until
from tests.client.gateway.test_verdicts import code


def test_a_phone_that_is_revoked_while_it_waits_gets_nothing(deployment: Deployment) -> None:
    (anna,) = deployment.gather("anna")
    waiting = deployment.pool.submit(lambda: code(lambda: anna.check_in(wait=20)))
    time.sleep(0.5)
    revoke_token(deployment.place.delivery, "anna")
    deployment.describe(max_examples=99)  # news, which end the waiting
    assert waiting.result(10) == grpc.StatusCode.UNAUTHENTICATED
    assert deployment.counters["revoked-token"] == 1


def test_refusals_are_counted_and_logged_once_a_minute(
    deployment: Deployment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deployment.gather("anna")
    authority = deployment.place.server / "ca.crt"
    for name in ("anna", "anna", "nobody", "no-one"):
        for secret in "xyz":
            (tmp_path / "wrong").write_text(f"{name}.{secret * 43}\n")
            wrong = Phone(name, tmp_path / "wrong", deployment.port, authority)
            assert code(wrong.check_in) == grpc.StatusCode.UNAUTHENTICATED
            wrong.channel.close()
    assert deployment.counters["wrong-token"] == 12
    said = [r for r in caplog.records if "refused" in r.message and r.levelno >= logging.WARNING]
    assert len(said) == 2, "one of anna, and one of all names that there are not"


def test_idle_connections_of_strangers_have_a_limit(
    apart: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.Gateway.__init__, "__defaults__", (5,))
    apart.start()
    context = ssl.create_default_context(cafile=str(apart.place.server / "ca.crt"))
    context.set_alpn_protocols(["h2"])
    opened = 0
    with ExitStack() as stack:
        for _ in range(12):
            try:
                plain = socket.create_connection(("127.0.0.1", apart.port), 5)
                stack.enter_context(plain)
                stack.enter_context(context.wrap_socket(plain, server_hostname="127.0.0.1"))
                opened += 1
            except OSError:
                continue
        assert opened == 5
    (anna,) = apart.add("anna")
    wait_until(lambda: anna.check_in().WhichOneof("what") == "later")
