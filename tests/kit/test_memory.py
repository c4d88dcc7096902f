"""The memory of a process tree, and stopping it in time."""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

import pytest

from oodatcaa.kit.machine import describe_machine, total_memory
from oodatcaa.kit.memory import MemoryWatch, TreeMemory, read_samples, tree_memory
from oodatcaa.kit.process import Child

MB = 1_000_000
EAT = """
import sys, time
block = b"x" * int(sys.argv[1])
time.sleep(float(sys.argv[2]))
"""
GROW = """
import time
blocks = []
while True:
    blocks.append(b"x" * 5_000_000)
    time.sleep(0.01)
"""


def eater(size: int, seconds: float = 100) -> list[str]:
    return [sys.executable, "-S", "-c", EAT, str(size), str(seconds)]


def wait_for(pid: int, size: int) -> TreeMemory:
    for _ in range(1000):
        look = tree_memory(pid)
        if look.tree_bytes >= size:
            return look
        time.sleep(0.02)
    raise AssertionError(f"never reached {size}")


def test_a_tree_counts_its_descendants() -> None:
    script = f"{sys.executable} -S -c '{EAT}' 100000000 100 & wait"
    with Child.start(["sh", "-c", script]) as child:
        look = wait_for(child.pid, 100 * MB)
    assert look.tree_bytes < 200 * MB
    assert look.processes >= 3


def test_a_process_that_is_gone_has_no_memory() -> None:
    child = Child.start(["true"])
    child.wait(20)
    assert tree_memory(child.pid) == TreeMemory(tree_bytes=0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="control groups are Linux's")
def test_files_that_were_read_twice_are_no_memory_of_a_tree_in_a_group_of_its_own(
    tmp_path: Path,
) -> None:
    # As the kernel counts 300 MB that were written to a file, and read a second time: "active".
    folder = tmp_path / "sys/fs/cgroup/run.scope"
    folder.mkdir(parents=True)
    (folder / "memory.current").write_text("813000000\n")
    (folder / "memory.stat").write_text(
        "anon 500000000\nfile 310000000\nshmem 3000000\n"
        "inactive_file 7000000\nactive_file 300000000\n"
    )
    with Child.start(eater(10 * MB)) as child:
        for pid, group in ((child.pid, "run.scope"), (os.getpid(), "app.scope")):
            (tmp_path / f"proc/{pid}").mkdir(parents=True)
            (tmp_path / f"proc/{pid}/cgroup").write_text(f"0::/{group}\n")
        look = tree_memory(child.pid, system=tmp_path)
    assert look.tree_bytes == 506 * MB


def test_a_growing_tree_is_killed_at_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "memory.jsonl"
    limit = 150 * MB
    with (
        Child.start([sys.executable, "-S", "-c", GROW]) as child,
        MemoryWatch(child.pid, limit, on_over=lambda _: _end(child), path=path) as watch,
    ):
        assert child.wait(60) is not None
    assert watch.over is not None
    assert limit < watch.peak_bytes < 2 * limit
    samples = read_samples(path)
    assert max(s.tree_bytes for s in samples) == watch.over.tree_bytes
    assert [s.at for s in samples] == sorted(s.at for s in samples)


def _end(child: Child) -> None:
    child.kill()


def test_a_tree_under_the_limit_is_left_alone() -> None:
    called: list[TreeMemory] = []
    with (
        Child.start(eater(60 * MB, 0.5)) as child,
        MemoryWatch(child.pid, 10_000 * MB, on_over=called.append) as watch,
    ):
        assert child.wait(60) == 0
    assert called == []
    assert watch.over is None
    assert watch.peak_bytes >= 60 * MB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's peak is Linux's")
def test_a_spike_between_two_looks_counts() -> None:
    code = "x = b'x' * 200_000_000; del x; import time; print('low', flush=True); time.sleep(100)"
    with Child.start([sys.executable, "-S", "-c", code]) as child:
        for _ in range(1000):
            look = tree_memory(child.pid)
            if look.peak_bytes > 200 * MB and look.tree_bytes < 100 * MB:
                break
            time.sleep(0.02)
    assert look.peak_bytes > 200 * MB > look.tree_bytes


def test_a_failing_callback_is_kept_not_swallowed() -> None:
    def refuse(_: TreeMemory) -> None:
        raise RuntimeError("no")

    watch = MemoryWatch(os.getpid(), 10**15, on_over=refuse)
    with watch:
        watch.limit = 1
        for _ in range(500):
            if watch.error is not None:
                break
            time.sleep(0.01)
    assert isinstance(watch.error, RuntimeError)


def test_an_unwritable_file_does_not_blind_the_watch(tmp_path: Path) -> None:
    seen = threading.Event()
    absent = tmp_path / "absent" / "memory.jsonl"
    with MemoryWatch(os.getpid(), 1, on_over=lambda _: seen.set(), path=absent) as watch:
        assert seen.wait(20)
    assert isinstance(watch.write_error, OSError)
    assert watch.peak_bytes > 1


def test_two_looks_are_50_milliseconds_apart_at_most_however_it_was_asked(tmp_path: Path) -> None:
    path = tmp_path / "memory.jsonl"
    with MemoryWatch(os.getpid(), None, interval=5.0, path=path, every=0.0) as watch:
        assert watch.interval == 0.05
        time.sleep(1.5)
    at = [sample.at.timestamp() for sample in read_samples(path)]
    gaps = [after - before for before, after in itertools.pairwise(at)]
    # Half of them: a busy machine may keep any one look waiting, which `longest_gap` tells then.
    assert statistics.median(gaps) < 0.055
    assert statistics.median(gaps) < watch.longest_gap < 1.5


def test_the_longest_gap_is_of_the_time_when_a_look_was_kept_waiting(tmp_path: Path) -> None:
    # A pipe that nobody reads yet: writing the sample waits, and with it the next look.
    path = tmp_path / "memory.jsonl"
    os.mkfifo(path)
    watch = MemoryWatch(os.getpid(), None, path=path)
    reading: list[TextIO] = []
    threading.Timer(0.5, lambda: reading.append(path.open())).start()
    with watch:
        for _ in range(500):
            if watch.samples > 3:
                break
            time.sleep(0.01)
    assert watch.longest_gap > 0.4
    reading[0].close()


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "memory.jsonl"
    path.write_text('{"at": "2026-01-30T12:00:00+00:00", "tree_bytes": 5}\n{"at": "2026-')
    assert [s.tree_bytes for s in read_samples(path)] == [5]
    assert read_samples(tmp_path / "absent") == ()


def test_the_machine_is_described_without_a_framework() -> None:
    machine = describe_machine()
    assert machine.memory_bytes == total_memory() > 0
    assert machine.cpu_count >= 1
    assert machine.accelerator in ("metal", "cuda", "cpu")
