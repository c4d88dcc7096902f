"""Turns before a lock: few at a time, each for a moment, and nobody waits for them for ever."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from oodatcaa.kit.locks import FileLock
from oodatcaa.kit.turns import Turns

context = multiprocessing.get_context("fork")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "turn"


def free(path: Path, number: int = 0) -> bool:
    lock = FileLock(path.with_name(f"{path.name}-{number}"))
    try:
        return lock.try_acquire()
    finally:
        lock.close()


def wait_until_free(path: Path, number: int = 0) -> None:
    end = time.monotonic() + 20
    while not free(path, number):
        assert time.monotonic() < end, "the turn is never given back"
        time.sleep(0.005)


def test_a_burst_keeps_its_turn_only_for_a_moment(path: Path) -> None:
    turns = Turns(path, count=1)
    fresh = []
    end = time.monotonic() + 5 * Turns.SLICE
    while time.monotonic() < end:
        with turns.taken() as new:
            fresh.append(new)
    assert not all(fresh), "it never came back to its own turn"
    assert sum(fresh) > 2, "it never queued behind the others"
    wait_until_free(path)  # given back without any further call


def test_who_comes_now_and_then_gives_its_turn_back_at_once(path: Path) -> None:
    turns = Turns(path, count=1)
    for _ in range(3):
        with turns.taken() as new:
            assert new
            assert not free(path)
        assert free(path)
        time.sleep(2 * Turns.BURST)


def test_so_many_at_once_and_no_more(path: Path) -> None:
    others = [Turns(path, count=2) for _ in range(2)]
    for one in others:
        one.take()
    assert not free(path, 0)
    assert not free(path, 1)
    third, start = Turns(path, count=2), time.monotonic()
    third.take()  # goes on without one in the end: nothing may hang on a turn
    assert time.monotonic() - start >= Turns.PATIENCE * 0.9
    third.release()
    start = time.monotonic()
    with third.taken():  # and the next time it does not wait for one at all
        assert time.monotonic() - start < Turns.PATIENCE / 2
    for one in others:
        one.release()
    wait_until_free(path, 0)  # who gave up waiting may get it for a moment
    wait_until_free(path, 1)


def test_a_slow_disk_lets_more_wait_for_it(path: Path) -> None:
    quick, slow = Turns(path, count=1, most=4), Turns(path, count=1, most=4)
    for _ in range(100):
        quick.heed(worked=0.001, waited=0.0005)
        slow.heed(worked=0.001, waited=0.1)
    quick.take()
    assert not free(path, 0)
    slow.take()
    assert not all(free(path, number) for number in (1, 2, 3)), "it waited for the one turn"
    slow.heed(worked=0.001, waited=0.0)
    slow.release()
    others = [Turns(path, count=1, most=4) for _ in range(2)]
    for one in others:
        for _ in range(100):
            one.heed(worked=0.001, waited=0.003)
        one.take()
    assert not free(path, 0)
    assert sum(not free(path, number) for number in range(4)) == 3
    for one in (quick, *others):
        one.close()


def _take_and_wait(path: Path, taken: Event) -> None:
    Turns(path, count=1).take()
    taken.set()
    time.sleep(60)


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_stopped_or_dead_holder_stops_nobody(path: Path, how: signal.Signals) -> None:
    taken = context.Event()
    child = context.Process(target=_take_and_wait, args=(path, taken))
    child.start()
    try:
        assert taken.wait(20)
        assert child.pid is not None
        os.kill(child.pid, how)
        with Turns(path, count=1).taken() as new:
            assert new
    finally:
        child.kill()
        child.join()


def test_a_folder_that_is_not_there_has_no_turns_and_needs_none(path: Path) -> None:
    with Turns(path / "missing" / "turn").taken() as new:
        assert new


def test_a_forked_child_has_no_part_in_its_parents_turn(path: Path) -> None:
    turns = Turns(path, count=1)
    turns.take()
    if (child := os.fork()) == 0:
        turns.begin_in_child()
        turns.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert not free(path), "the child gave back what was the parent's"
    turns.release()
    assert free(path)
