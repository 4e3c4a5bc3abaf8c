"""How far long work is: never silent for more than ten seconds where no terminal shows it."""

import logging
import sys
import threading

import pytest

import common.progress
from common.progress import stage, track


class Clock:
    """Seconds that pass when a test says so; each second somebody looks, as the thread does."""

    def __init__(self, watch):
        self.now, self.watch = 100.0, watch

    def __call__(self):
        return self.now

    def wait(self, seconds):
        for _ in range(seconds):
            self.now += 1
            self.watch.look()


@pytest.fixture
def clock(monkeypatch, caplog):
    watch = common.progress._Watch()
    watch.clock = clock = Clock(watch)
    monkeypatch.setattr(common.progress, "_WATCH", watch)
    monkeypatch.setattr(common.progress, "_SILENCE_SECONDS", 9.0)
    monkeypatch.setattr(common.progress, "_LOOK_SECONDS", 3600)  # the thread sees nothing
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    caplog.set_level("INFO", "fedhead")
    return clock


def test_long_work_says_every_ten_seconds_what_it_does_and_for_how_long(clock, caplog):
    with stage("waiting"):
        clock.wait(8)
        assert caplog.messages == []
        clock.wait(22)
    clock.wait(100)
    assert caplog.messages == ["waiting: 9 s", "waiting: 18 s", "waiting: 27 s"]


def test_counted_work_says_how_far_it_is(clock, caplog):
    assert caplog.messages == []
    for _ in track(range(5), "features", 5):
        clock.wait(6)
    assert caplog.messages == [
        "features: 1 of 5, 9 s",
        "features: 2 of 5, 18 s",
        "features: 4 of 5, 27 s",
    ]


def test_the_innermost_work_is_told_and_the_outer_again_when_that_is_over(clock, caplog):
    with stage("fedhead run"):
        with stage("backbone"):
            clock.wait(5)
            with stage("distilling", total=80) as step:
                step.done = 40
                clock.wait(5)
        clock.wait(9)
    assert caplog.messages == ["distilling: 40 of 80, 4 s", "fedhead run: 18 s"]


def test_other_lines_of_the_log_count_as_a_sign_of_life(clock, caplog):
    with stage("rounds"):
        for number in range(4):
            clock.wait(8)
            logging.getLogger("fedhead").info("round %d", number)
        clock.wait(9)
    assert caplog.messages == ["round 0", "round 1", "round 2", "round 3", "rounds: 41 s"]


def test_a_library_that_is_kept_quiet_does_not_hush_it(clock, caplog):
    logging.disable(logging.WARNING)
    try:
        with stage("lowering"):
            clock.wait(9)
    finally:
        logging.disable(logging.NOTSET)
    assert caplog.messages == ["lowering: 9 s"]


def test_a_log_that_takes_warnings_alone_stays_silent(clock, caplog):
    caplog.set_level("WARNING", "fedhead")
    with stage("a cell of a comparison"):
        clock.wait(30)
    assert caplog.messages == []


def test_work_that_fails_is_over(clock, caplog):
    with pytest.raises(ValueError, match="broken"), stage("work"):
        raise ValueError("broken")
    steps = track(range(5), "counted", 5)
    next(steps)
    steps.close()
    clock.wait(30)
    assert caplog.messages == []


def test_on_a_terminal_a_bar_speaks_instead(clock, caplog, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    for _ in track(range(2), "features", 2):
        with stage("within"):
            clock.wait(30)
    assert caplog.messages == []
    with stage("no bar for what is not counted"):
        clock.wait(9)
    assert caplog.messages == ["no bar for what is not counted: 9 s"]


def test_a_thread_looks_as_long_as_there_is_work(monkeypatch):
    looked = threading.Event()
    watch = common.progress._Watch()
    monkeypatch.setattr(common.progress, "_LOOK_SECONDS", 0.001)
    monkeypatch.setattr(watch, "look", looked.set)
    monkeypatch.setattr(common.progress, "_WATCH", watch)
    before = set(threading.enumerate())
    with stage("outer"), stage("inner"):
        assert looked.wait(60)
        (thread,) = set(threading.enumerate()) - before
    thread.join(60)
    assert not thread.is_alive()
    assert watch not in logging.getLogger("fedhead").filters
