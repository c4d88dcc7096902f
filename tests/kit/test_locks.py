"""The lock excludes other processes and filelock, waits in the kernel, and names its holder."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path

import filelock
import pytest

from oodatcaa.errors import StateError
from oodatcaa.kit.locks import FileLock

context = multiprocessing.get_context("fork")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "queue.json.lock"


@pytest.fixture
def start() -> Iterator[Callable[..., int]]:
    """Run a function in a process and return its pid once it says that it holds the lock."""
    running = []

    def begin(hold: Callable[[Path, Event], None], path: Path) -> int:
        held = context.Event()
        process = context.Process(target=hold, args=(path, held))
        process.start()
        running.append(process)
        assert held.wait(20)
        assert process.pid is not None
        return process.pid

    yield begin
    for process in running:
        process.kill()
        process.join()


def _hold(path: Path, held: Event) -> None:
    lock = FileLock(path)
    lock.acquire()
    held.set()
    signal.pause()


def _hold_with_filelock(path: Path, held: Event) -> None:
    with filelock.FileLock(path):
        held.set()
        signal.pause()


def test_a_waiter_gives_up_in_time_and_names_the_holder(
    path: Path, start: Callable[..., int]
) -> None:
    pid = start(_hold, path)
    with pytest.raises(StateError) as caught:
        FileLock(path, code="queue.locked", what="the queue").acquire(0.05)
    error = caught.value
    assert error.code == "queue.locked"
    assert f"process {pid} ({Path(sys.argv[0]).name}" in error.message
    assert " since 20" in error.message
    assert str(pid) in error.hint


def test_a_holder_is_not_whoever_got_its_pid(path: Path) -> None:
    lock = FileLock(path)
    lock.acquire(20)
    note = json.loads(lock.note_path.read_bytes().split(b"\n")[0])
    note["started"] -= 100  # another process had this pid then
    lock.note_path.write_text(json.dumps(note) + "\n", encoding="utf-8")
    assert lock.holder() is None
    lock.release()


def test_a_killed_holder_gives_the_lock_back(path: Path, start: Callable[..., int]) -> None:
    pid = start(_hold, path)
    threading.Timer(0.1, os.kill, (pid, signal.SIGKILL)).start()
    lock = FileLock(path)
    lock.acquire(20)
    assert lock.holder() is not None
    assert lock.holder().pid == os.getpid()  # type: ignore[union-attr]
    lock.release()
    assert lock.holder() is None


def test_filelock_keeps_us_out_and_we_filelock(path: Path, start: Callable[..., int]) -> None:
    lock = FileLock(path)
    with lock.held(), pytest.raises(filelock.Timeout):
        filelock.FileLock(path).acquire(timeout=0.05)
    with filelock.FileLock(path):
        pass
    assert path.exists()
    start(_hold_with_filelock, path)
    assert not lock.try_acquire()
    with pytest.raises(StateError) as caught:
        lock.acquire(0.05)
    assert "a program that left no note" in caught.value.message
    assert "fuser" in caught.value.hint


def test_lockf_is_another_lock_that_would_exclude_nobody(path: Path) -> None:
    """POSIX record locks (lockf) and flock do not see each other: only flock fits filelock."""
    with filelock.FileLock(path), path.open("r+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert not FileLock(path).try_acquire()


def test_an_abandoned_wait_does_not_keep_the_lock(path: Path, start: Callable[..., int]) -> None:
    pid = start(_hold, path)
    loser = FileLock(path)
    with pytest.raises(StateError):
        loser.acquire(0.02)
    os.kill(pid, signal.SIGKILL)
    FileLock(path).acquire(20)  # the loser's thread got it first and passed it on


def test_an_abandoned_wait_that_a_fork_copied_does_not_keep_the_lock(
    path: Path, start: Callable[..., int]
) -> None:
    pid = start(_hold, path)
    loser = FileLock(path)
    with pytest.raises(StateError):
        loser.acquire(0.02)
    child = context.Process(target=time.sleep, args=(60,))  # with a copy of the loser's handle
    child.start()
    try:
        os.kill(pid, signal.SIGKILL)
        FileLock(path).acquire(20)
    finally:
        child.kill()
        child.join()


def test_a_forked_child_does_not_keep_its_dead_parents_lock(path: Path) -> None:
    parent = context.Process(target=_hold_fork_and_die, args=(path,))
    parent.start()
    note = path.with_name("child")
    end = time.monotonic() + 20
    while not (note.exists() and note.read_text()):
        assert time.monotonic() < end
        time.sleep(0.01)
    try:
        FileLock(path).acquire(20)
    finally:
        os.kill(int(note.read_text()), signal.SIGKILL)
        parent.join(20)  # before that its forked child keeps the pipe that join waits for


def _hold_fork_and_die(path: Path) -> None:
    lock = FileLock(path)
    os.register_at_fork(after_in_child=lock.begin_in_child)
    lock.acquire(20)
    if (child := os.fork()) == 0:
        time.sleep(60)
        os._exit(0)
    path.with_name("child").write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_stopped_holder_is_named_with_the_way_to_go_on(
    path: Path, start: Callable[..., int]
) -> None:
    pid = start(_hold, path)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(StateError) as caught:
        FileLock(path).acquire(0.1)
    assert f"kill -CONT {pid}" in caught.value.hint


def test_a_replaced_lock_file_is_noticed(path: Path) -> None:
    first = FileLock(path)
    first.acquire()
    path.unlink()
    second = FileLock(path)
    second.acquire(5)  # on a new inode: the name is what counts
    first.release()
    assert not first.try_acquire()
    second.release()
    assert first.try_acquire()


def _count(path: Path, rounds: int) -> None:
    lock, counter = FileLock(path), path.with_name("counter")
    for _ in range(rounds):
        lock.acquire(60)
        value = int(counter.read_text())
        counter.write_text(str(value + 1))
        lock.release()
    lock.close()


def test_no_increment_is_lost_between_processes_and_threads(path: Path) -> None:
    path.with_name("counter").write_text("0")
    workers = [context.Process(target=_count, args=(path, 150)) for _ in range(3)]
    for one in workers:
        one.start()
    threads = [threading.Thread(target=_count, args=(path, 150)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for one in workers:
        one.join(60)
    for thread in threads:
        thread.join(60)
    assert path.with_name("counter").read_text() == "750"


def test_a_forked_child_does_not_share_its_parents_lock(path: Path) -> None:
    lock = FileLock(path)
    lock.acquire()
    child = os.fork()
    if child == 0:
        os._exit(0 if not lock.try_acquire() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert not FileLock(path).try_acquire()
    lock.release()
