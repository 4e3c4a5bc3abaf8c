"""What downloads may take, on a clock of the test's own: nothing here depends on real time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from client.delivery.remote import DeliveryInterruptedError
from common.delivery.tokens import issue_token
from common.errors import DeliveryError
from server.delivery.limits import Clock, Places, RateLimit
from server.delivery.reports import survey
from server.delivery.service import Limits


class Time:
    """A clock that moves only when somebody sleeps."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()
        self.clock = Clock(lambda: self.seconds, self._sleep)

    def _sleep(self, seconds: float) -> None:
        with self._lock:
            self.seconds += seconds


def test_the_rate_holds_for_all_callers_together_and_saves_nothing_up() -> None:
    now = [0.0]
    waits = []
    rate = RateLimit(100.0, Clock(lambda: now[0], waits.append))
    # Three callers at the same moment: one goes, the others wait for those before them.
    for _ in range(3):
        rate.take(50)
    assert waits == [0.5, 1.0]
    now[0] = 100.0
    for _ in range(2):
        rate.take(200)
    assert waits == [0.5, 1.0, 2.0]


def test_downloads_from_a_server_keep_to_its_rate(deployment, serve) -> None:
    size = 1_000_000
    data = deployment.publish(1, size)
    artifact = survey(deployment.folder)[0].artifact
    time = Time()
    with deployment.remote(serve(limits=Limits(4, 100_000.0), clock=time.clock)) as remote:
        for _ in range(2):
            assert b"".join(remote.download(artifact, 0)) == data
    # All but the last chunk, which need not be waited for.
    assert time.seconds == pytest.approx((2 * size - size % 16384) / 100_000.0)


def test_places_are_few_and_a_devices_new_download_takes_its_old_place() -> None:
    places = Places(2, 30, Clock(lambda: 0.0))
    ended = []
    ends = {name: lambda name=name: ended.append(name) for name in "abcd"}
    assert places.enter("one", ends["a"])
    assert places.enter("two", ends["b"])
    assert not places.enter("three", ends["c"])
    assert ended == []
    assert places.enter("two", ends["d"])
    assert ended == ["b"]
    places.leave("two", ends["b"])  # the old one, late
    assert not places.enter("three", ends["c"])
    places.leave("two", ends["d"])
    assert places.enter("three", ends["c"])


def test_who_waits_takes_the_place_of_a_reader_that_has_stopped(caplog) -> None:
    now = [0.0]
    places = Places(2, 30, Clock(lambda: now[0]))
    ended = []
    ends = {name: lambda name=name: ended.append(name) for name in "abcd"}
    assert places.enter("one", ends["a"])
    now[0] = 1.0
    assert places.enter("two", ends["b"])
    now[0] = 20.0
    places.moved("one", ends["a"])
    now[0] = 30.9
    assert not places.enter("three", ends["c"])
    now[0] = 31.0
    assert places.enter("three", ends["c"])
    assert ended == ["b"]
    assert "two: its download is ended: it has taken nothing for 30 s" in caplog.text
    # What is broken off says so late, and changes nothing of the others.
    places.moved("two", ends["b"])
    places.leave("two", ends["b"])
    assert not places.enter("four", ends["d"])


@pytest.mark.parametrize("rate", [float("nan"), 0.0, 100.0, -1.0])
def test_a_rate_at_which_downloads_would_seem_to_stand_still_is_refused(rate: float) -> None:
    with pytest.raises(DeliveryError, match=r"16 downloads at once need 819 bytes a second, not "):
        Limits(16, rate)
    # As little as the command line takes: each has a piece within the time that devices wait.
    slow = Limits(16, 1000.0)
    assert 16 * slow.chunk / slow.bytes_per_second < slow.stall_seconds


def test_a_server_refuses_a_download_too_many_and_has_room_again_after(
    deployment, serve, tmp_path
) -> None:
    # Far more than gRPC's flow control lets a stream run ahead of its reader.
    data = deployment.publish(1, 20_000_000)
    artifact = survey(deployment.folder)[0].artifact
    tokens = [deployment.token]
    for number in (2, 3):
        tokens.append(tmp_path / f"phone-{number}.token")
        issue_token(deployment.folder, f"phone-{number}", tokens[-1])
    port = serve(limits=Limits(downloads=2, bytes_per_second=1e12))
    remotes = [deployment.remote(port, token=token) for token in tokens]
    streams = [remote.download(artifact, 0) for remote in remotes]
    starts = [next(streams[0]), next(streams[1])]
    with pytest.raises(DeliveryInterruptedError, match="too many downloads at once"):
        next(streams[2])
    # A short call needs no place.
    assert remotes[2].latest("model.bin") == artifact
    assert starts[0] + b"".join(streams[0]) == data
    with ThreadPoolExecutor(1) as pool:  # its place is given back a moment after its last byte
        assert pool.submit(persistently, remotes[2], artifact).result(30) == data
    assert starts[1] + b"".join(streams[1]) == data
    for remote in remotes:
        remote.__exit__(None, None, None)


def persistently(remote, artifact) -> bytes:
    while True:
        try:
            return b"".join(remote.download(artifact, 0))
        except DeliveryInterruptedError:
            continue


def test_a_devices_second_download_ends_its_first(deployment, serve) -> None:
    data = deployment.publish(1, 20_000_000)
    artifact = survey(deployment.folder)[0].artifact
    with deployment.remote(serve(limits=Limits(1, 1e12))) as remote:
        first = remote.download(artifact, 0)
        next(first)
        assert b"".join(remote.download(artifact, 0)) == data
        with pytest.raises(DeliveryError, match="another download with this token has begun"):
            list(first)
