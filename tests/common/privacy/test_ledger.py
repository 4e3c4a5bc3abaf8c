"""What was charged stays charged, wherever a process is killed, and damage is never a discount."""

from __future__ import annotations

import dataclasses
import errno
import math
import multiprocessing
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from common.errors import DamagedError
from common.privacy.accounting import poisson_epsilon
from common.privacy.factorization import coefficients
from common.privacy.gaussian import composed, gaussian_epsilon, gaussian_sigma
from common.privacy.ledger import LEDGER, Entry, Ledger, spent

FORK = multiprocessing.get_context("fork")
FIRST = Entry(1, "9f86", "2c26", "everyone", 3.3, 500, 0.19, 1e-5)


def entry(number: int, **changes: Any) -> Entry:
    return dataclasses.replace(FIRST, **{"round": number, "digest": f"{number:064x}", **changes})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "run" / "privacy-ledger.jsonl")


def test_releases_come_back_in_their_order(ledger: Ledger) -> None:
    assert ledger.entries == ()
    sampled = entry(2, mechanism="poisson", rate=0.1)
    apart = entry(3, mechanism="min-separation", separation=4)
    for one in (FIRST, sampled, apart):
        assert ledger.charge(one)
    assert Ledger(ledger.path).entries == (FIRST, sampled, apart)
    assert ledger.path.read_text().startswith('{"number": 1, "round": 1, "digest": "9f86", "sec')


def test_the_same_bytes_again_cost_nothing_and_anything_else_does(ledger: Ledger) -> None:
    assert ledger.charge(FIRST)
    assert not ledger.charge(FIRST)
    others = [
        dataclasses.replace(FIRST, **change)
        for change in ({"round": 2}, {"digest": "aa"}, {"secret": "bb"}, {"multiplier": 3.2})
    ]
    assert [ledger.charge(other) for other in others] == [True] * 4
    assert [ledger.charge(other) for other in (FIRST, *others)] == [False] * 5
    assert ledger.entries == (FIRST, *others)


@pytest.mark.parametrize(
    "change",
    [
        {"round": 0}, {"round": True}, {"round": 1.0}, {"digest": ""}, {"digest": "XY"},
        {"digest": 12}, {"secret": "no hex"}, {"mechanism": "fixed"}, {"mechanism": ["everyone"]},
        {"multiplier": 0.0}, {"multiplier": math.nan}, {"multiplier": math.inf},
        {"multiplier": "3"}, {"clients": -1}, {"clip": 0.0}, {"delta": 1.0}, {"delta": 0.0},
        {"rate": 0.1}, {"separation": 2}, {"mechanism": "poisson"},
        {"mechanism": "poisson", "rate": 1.5}, {"mechanism": "min-separation"},
        {"mechanism": "min-separation", "separation": 0},
    ],
    ids=str,
)  # fmt: skip
def test_what_no_release_can_be_is_refused(change: dict[str, Any], ledger: Ledger) -> None:
    last = next(reversed(change))
    named = "rate|separation" if last == "mechanism" else last
    with pytest.raises(ValueError, match=f"^({named}|mechanism) of a release with"):
        dataclasses.replace(FIRST, **change)
    # The same from a file, whose checksum is right.
    ledger.path.parent.mkdir()
    values = {k: v for k, v in dataclasses.asdict(FIRST).items() if v is not None} | change
    ledger.path.write_text(LEDGER.line({"number": 1, **values}) + "\n")
    with pytest.raises(DamagedError, match=r"ledger.jsonl, line 1 is damaged \(.* of a release"):
        _ = ledger.entries


def test_damage_is_named_by_its_line_and_nothing_more_is_charged(ledger: Ledger) -> None:
    for number in (1, 2, 3):
        ledger.charge(entry(number))
    whole = ledger.path.read_bytes()
    first, second, third = whole.splitlines(keepends=True)
    spoilt = second.replace(b"3.3", b"9.3")
    for content, line, why in (
        (first + spoilt + third, 2, "its checksum does not match"),
        (first + third, 2, "it is number 3"),
        (second + third, 1, "it is number 2"),
        (first + third + second, 2, "it is number 3"),
        (first + second + second, 3, "it is number 2"),
        (first + b"\n" + second + third, 2, "it is empty"),
        (first + second[:30] + third, 2, "its checksum does not match"),
        (first + second + bytes(len(third)) + b"\n", 3, "it has no checksum"),
        (first + second + third[:-1] + b"J", 3, "its checksum does not match"),
        (LEDGER.line({"round": 1}).encode() + b"\n", 1, "it is number None"),
        (LEDGER.line({"number": 1, "more": 1}).encode() + b"\n", 1, "argument"),
    ):
        ledger.path.write_bytes(content)
        for call in (lambda: ledger.entries, lambda: ledger.charge(entry(9))):
            with pytest.raises(DamagedError, match=f"ledger.jsonl, line {line} is dam.*{why}"):
                call()
        assert ledger.path.read_bytes() == content


def test_half_a_line_is_dropped_wherever_it_ends_and_a_whole_one_is_kept(ledger: Ledger) -> None:
    ledger.charge(entry(1))
    ledger.charge(entry(2))
    whole = ledger.path.read_bytes()
    start = whole.index(b"\n") + 1
    for cut in (*range(0, len(whole), 7), *range(start - 3, start + 3), *range(-3, 0)):
        cut %= len(whole) + 1
        ledger.path.write_bytes(whole[:cut])
        kept = (cut >= start - 1) + (cut >= len(whole) - 1)
        assert ledger.entries == (entry(1), entry(2))[:kept], cut
        assert ledger.charge(entry(7))
        assert ledger.charge(entry(8))
        assert ledger.entries == (*(entry(1), entry(2))[:kept], entry(7), entry(8)), cut


def test_a_ledger_that_was_read_before_tells_what_others_did_to_it_since(ledger: Ledger) -> None:
    assert ledger.charge(entry(1))
    assert ledger.charge(entry(2))
    first, second = ledger.path.read_bytes().splitlines(keepends=True)
    stat = ledger.path.stat()
    assert in_child(ledger.charge, entry(3)) == 0  # another process
    assert ledger.entries == (entry(1), entry(2), entry(3))
    assert not ledger.charge(entry(3))
    for content, why in (
        (first + second.replace(b"500", b"501"), "its checksum does not match"),
        (second + first, "it is number 2"),
        (first + first, "it is number 1"),
    ):  # of the same length, and as old
        ledger.path.write_bytes(content)
        os.utime(ledger.path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        for _ in range(2):
            with pytest.raises(DamagedError, match=why):
                _ = ledger.entries
    ledger.path.write_bytes(first + second[:-9])  # half a line of a killed process
    assert ledger.entries == (entry(1),)
    ledger.path.write_bytes(first + second)
    assert ledger.entries == (entry(1), entry(2))


def in_child(act: Callable[..., None], *args: object) -> int:
    child = FORK.Process(target=act, args=args)
    child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def killed_at(step: int, path: Path, ready: Connection) -> None:
    """Charge three releases, and die at one of the calls to the operating system."""
    calls = 0

    def dies(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step:
                if name == "write":  # half of it is on the disk
                    real(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    for name in ("open", "write", "fsync", "ftruncate", "close"):
        setattr(os, name, dies(name))
    ledger = Ledger(path)
    for number in (1, 2, 3):
        ledger.charge(entry(number))
        ready.send(number)
    ready.close()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_kill_at_any_step_of_a_charge_loses_nothing_that_was_acknowledged(
    tmp_path: Path,
) -> None:
    seen: set[tuple[int, int]] = set()
    for step in range(1, 28):
        ledger = Ledger(tmp_path / f"{step}" / "ledger.jsonl")
        receive, send = FORK.Pipe(duplex=False)
        assert in_child(killed_at, step, ledger.path, send) == -signal.SIGKILL
        send.close()
        acknowledged = 0
        while receive.poll():
            try:
                acknowledged = receive.recv()
            except EOFError:
                break
        there = len(ledger.entries)
        seen.add((acknowledged, there))
        assert acknowledged <= there <= acknowledged + 1
        assert ledger.entries == (entry(1), entry(2), entry(3))[:there]
        # The next process goes on, and charges each release once.
        for number in (1, 2, 3):
            assert ledger.charge(entry(number)) == (number > there)
        assert ledger.entries == (entry(1), entry(2), entry(3))
    # It died before, within and after each of the charges.
    assert seen == {(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3)}


def charge_for_ever(path: Path, first: int, ready: Connection) -> None:
    number = first
    while True:
        Ledger(path).charge(entry(number))
        ready.send(number)
        number += 2


def test_two_processes_append_and_kills_at_any_moment_lose_nothing(ledger: Ledger) -> None:
    chance = random.Random(0)
    acknowledged: set[int] = set()
    for turn in range(10):
        pipes = [FORK.Pipe(duplex=False) for _ in range(2)]
        children = [
            FORK.Process(target=charge_for_ever, args=(ledger.path, 1000 * turn + which + 1, send))
            for which, (_, send) in enumerate(pipes)
        ]
        for child in children:
            child.start()
        for receive, _ in pipes:  # both are at work
            acknowledged.add(receive.recv())
        time.sleep(chance.uniform(0, 0.02))
        for child in children:
            child.kill()
            child.join()
        for receive, send in pipes:
            send.close()
            while True:
                try:
                    acknowledged.add(receive.recv())
                except EOFError:
                    break
        rounds = [one.round for one in ledger.entries]
        assert len(rounds) == len(set(rounds))
        assert acknowledged <= set(rounds)
    assert len(acknowledged) > 20
    ledger.charge(entry(99_999))
    assert ledger.entries[-1] == entry(99_999)


def test_a_charge_is_on_the_disk_before_it_returns(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What a power failure would leave: what was written before the last fsync of file and folder.
    safe: dict[str, bytes] = {}
    real = os.fsync

    def fsync(file: int) -> None:
        real(file)
        path = Path(f"/proc/self/fd/{file}").readlink()
        if path.is_dir():
            safe["folder"] = b"".join(os.fsencode(inner.name) for inner in path.iterdir())
        else:
            safe["file"] = path.read_bytes()

    monkeypatch.setattr(os, "fsync", fsync)
    ledger.charge(entry(1))
    assert safe == {"file": ledger.path.read_bytes(), "folder": b"privacy-ledger.jsonl"}
    ledger.charge(entry(2))
    assert safe["file"] == ledger.path.read_bytes()
    # Somebody else's line, of which nobody knows whether it is safe.
    safe.clear()
    assert not ledger.charge(entry(2))
    assert safe["file"] == ledger.path.read_bytes()


def fill_up(path: Path) -> None:
    """Charge with a disk that takes 40 more bytes, and leave with 0 if it was refused cleanly."""
    before = path.read_bytes()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 40, resource.RLIM_INFINITY))
    try:
        Ledger(path).charge(entry(2))
    except OSError as exc:
        os._exit(0 if exc.errno == errno.EFBIG and path.read_bytes() == before else 1)
    os._exit(2)


def test_a_full_disk_is_an_error_and_leaves_no_half_line(ledger: Ledger) -> None:
    ledger.charge(entry(1))
    assert in_child(fill_up, ledger.path) == 0
    assert ledger.entries == (entry(1),)
    assert ledger.charge(entry(2))


def test_what_is_spent_is_what_all_releases_cost_together() -> None:
    sigma = gaussian_sigma(4.0, 1e-5)
    each = sigma * math.sqrt(10)
    rounds = [entry(t, multiplier=each) for t in range(1, 11)]
    assert spent([], 1e-5) == 0.0
    assert spent(rounds[:1], 1e-5) == gaussian_epsilon(each, 1e-5)
    costs = [spent(rounds[:count], 1e-5) for count in range(11)]
    assert costs == sorted(costs)
    assert 4.0 * (1 - 1e-6) < costs[-1] <= 4.0
    # A round that was done again with other sums is one release more.
    again = dataclasses.replace(rounds[0], digest="ab")
    assert spent([*rounds, again], 1e-5) == gaussian_epsilon(composed([each] * 11), 1e-5) > 4.0
    one_shot = entry(1, mechanism="one-shot", multiplier=sigma)
    assert spent([one_shot], 1e-5) == gaussian_epsilon(sigma, 1e-5)
    assert spent([one_shot, *rounds], 1e-5) == gaussian_epsilon(
        composed([sigma, *[each] * 10]), 1e-5
    )


def poisson(number: int, **changes: Any) -> Entry:
    return entry(number, **{"mechanism": "poisson", "rate": 0.2, "multiplier": 8.0, **changes})


def test_sampled_rounds_cost_what_their_loss_distributions_say() -> None:
    rounds = [poisson(t) for t in range(1, 6)]
    assert spent(rounds, 1e-5) == poisson_epsilon(8.0, 1e-5, 0.2, 5)
    other = poisson(6, multiplier=9.0)
    both = spent([*rounds, other], 1e-5)
    assert poisson_epsilon(9.0, 1e-5, 0.2, 6) < both < poisson_epsilon(8.0, 1e-5, 0.2, 6)
    with_all = spent([*rounds, entry(6, multiplier=8.0)], 1e-5)
    assert with_all > poisson_epsilon(8.0, 1e-5, 0.2, 6)


def test_two_attempts_at_a_sampled_round_share_its_cohort() -> None:
    # Whoever is in the cohort is in both: one release with half the squared noise. As two rounds
    # with cohorts of their own they would seem cheaper than they are.
    attempts = [poisson(1), poisson(1, digest="ab")]
    cost = spent(attempts, 1e-5)
    assert cost == poisson_epsilon(composed([8.0, 8.0]), 1e-5, 0.2, 1)
    assert cost > poisson_epsilon(8.0, 1e-5, 0.2, 2)
    # Another secret tosses other coins.
    assert spent([poisson(1), poisson(1, secret="ab")], 1e-5) == poisson_epsilon(8.0, 1e-5, 0.2, 2)
    # Coins at another rate are the same coins: the larger cohort holds the smaller one.
    mixed = [poisson(1), poisson(1, rate=0.5)]
    assert spent(mixed, 1e-5) == poisson_epsilon(composed([8.0, 8.0]), 1e-5, 0.5, 1)


def separate(number: int, **changes: Any) -> Entry:
    return entry(number, **{"mechanism": "min-separation", "separation": 3, **changes})


def test_separated_rounds_cost_one_release_against_their_sensitivity() -> None:
    c = coefficients(3)
    rounds = [separate(t) for t in range(1, 10)]

    def of(squared: float) -> float:
        return gaussian_epsilon(3.3 / math.sqrt(squared), 1e-5)

    column = sum(value**2 for value in c)
    assert spent(rounds[:1], 1e-5) == pytest.approx(of(1), rel=1e-6)
    assert spent(rounds[:3], 1e-5) == pytest.approx(of(column), rel=1e-6)
    assert spent(rounds, 1e-5) == pytest.approx(of(3 * column), rel=1e-6)
    # An attempt more is a row more, and another secret a run of its own.
    again = separate(4, digest="ab")
    assert spent([*rounds, again], 1e-5) == pytest.approx(of(3 * column + 1), rel=1e-6)
    moved = [*rounds[:4], *(separate(t, secret="ab") for t in range(5, 10))]
    assert spent(moved, 1e-5) == pytest.approx(of(column + 1 + column + 1 + c[1] ** 2), rel=1e-6)
    assert spent(moved, 1e-5) > spent(rounds, 1e-5)
    # Rounds of which nothing was released count, in case.
    assert spent([rounds[0], rounds[-1]], 1e-5) == spent(rounds, 1e-5)
