"""The wall: whatever eats memory is stopped, by whom is known, and what it held is on record.

The adversaries are small programs in real children: importing a model would only make them slow.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from memory_eaters import (
    ALL_CORES,
    CALLBACK,
    JUMP,
    LEAP,
    LEAP_BELOW,
    MB,
    STEP,
    WALLED,
    grandchild,
    growing,
    most_past,
    pace,
)
from oodatcaa.domain.memory import MemoryLayer, MemoryStop
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import FailureKind, RunFailure, TrainSpec
from oodatcaa.kit.cgroup import make_group
from oodatcaa.kit.memory import read_samples
from oodatcaa.kit.process import Child, Limits
from oodatcaa.training.children import DEFAULTS, ChildSettings, run_child
from oodatcaa.training.endings import Ended, memory_stop
from oodatcaa.training.estimate import check_before
from oodatcaa.training.forecast import ProbeCache
from oodatcaa.training.protocol import EXIT_BLIND
from oodatcaa.training.question import Question
from oodatcaa.training.reservation import Reservations
from tiny_model import make_tiny_data, make_tiny_model

_tried = make_group(100 * MB)
GROUPS = _tried is not None
if _tried is not None:
    _tried.close()
BY_WATCHER_ALONE = ChildSettings(control_group=False)
CORES = os.cpu_count() or 1


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def rate() -> float:
    """Before anything else here keeps the machine busy."""
    return pace()


def stopped(
    tmp_path: Path,
    code: str,
    limit: int,
    inside: int | None = None,
    settings: ChildSettings = DEFAULTS,
) -> tuple[Ended, RunFailure]:
    log = tmp_path / "log"
    argv = [sys.executable, "-c", code, str(tmp_path), str(inside or limit)]
    samples = tmp_path / "memory.jsonl"
    ended = run_child(
        argv, folder=tmp_path, log=log, limit=limit, samples=samples, settings=settings
    )
    found = memory_stop(ended, log, limit)
    assert found is not None, log.read_text()
    assert found.kind is FailureKind.MEMORY_GATE
    assert found.layer is MemoryLayer.DURING
    assert found.stop is not None
    assert f"memory_gate: {found.stop.value}" in found.message
    return ended, found


@pytest.mark.parametrize(
    ("code", "threads"),
    [
        pytest.param(growing(4 * MB), 1, id="grows slowly"),
        pytest.param(grandchild(4 * MB), 1, id="grandchild"),
        pytest.param(LEAP, 1, id="one step"),
        pytest.param(LEAP_BELOW, 1, id="one step below"),
        pytest.param(ALL_CORES, CORES, id="all cores"),
    ],
)
def test_nothing_in_the_tree_gets_further_than_between_two_looks_of_the_watcher(
    tmp_path: Path, code: str, threads: int, rate: float
) -> None:
    limit = 150 * MB
    ended, found = stopped(tmp_path, code, limit, settings=BY_WATCHER_ALONE)
    assert found.stop is MemoryStop.WATCHER
    assert found.limit_bytes == limit
    assert ended.longest_gap > 0
    past = max(ended.peak_bytes, found.needed_bytes or 0) - limit
    assert 0 < past <= most_past(limit, ended.longest_gap, rate, threads)
    series = [sample.tree_bytes for sample in read_samples(tmp_path / "memory.jsonl")]
    assert series
    assert ended.peak_bytes >= max(series) > limit


@pytest.mark.parametrize("body", [CALLBACK, STEP])
def test_inside_a_thread_stops_a_leak_and_a_step_that_is_still_computing(
    tmp_path: Path, body: str, rate: float
) -> None:
    inside = 400 * MB
    ended, found = stopped(tmp_path, WALLED.format(body=body), 600 * MB, inside)
    assert found.stop is MemoryStop.STEP
    assert (found.needed_bytes or 0) > inside
    note = ended.stop_note
    assert note is not None
    assert note.longest_gap > 0
    # MLX counts an array as soon as it is asked for; in memory it is when it has been written.
    assert note.process_bytes - inside <= most_past(inside, note.longest_gap, rate)


@pytest.mark.skipif(not GROUPS, reason="no control group can be made here")
@pytest.mark.parametrize("code", [LEAP, LEAP_BELOW])
def test_a_control_group_holds_the_whole_tree_exactly_at_the_limit(
    tmp_path: Path, code: str
) -> None:
    group = make_group(150 * MB)
    assert group is not None
    with (
        group,
        Child.start([sys.executable, "-c", code], limits=Limits(group=group.entrance)) as child,
    ):  # nobody but the kernel looks
        ended = Ended(
            exit_code=child.wait(60) or 0, peak_bytes=0, seconds=1.0, group_kills=group.kills
        )
        peaks = [group.folder / name for name in ("memory.peak", "memory.max_usage_in_bytes")]
        held = [int(path.read_text()) for path in peaks if path.exists()]
    assert all(peak <= 150 * MB for peak in held)
    assert ended.group_kills >= 1
    found = memory_stop(ended, tmp_path / "no log", 150 * MB)
    assert found is not None
    assert found.stop is MemoryStop.KERNEL
    assert "control group" in found.message
    watched, _ = stopped(tmp_path, code, 150 * MB)
    # The supervisor, and pages shared with the rest of the system, are not the group's.
    assert watched.peak_bytes < 150 * MB + 40 * MB, "unstopped it would be 3 GB"


@pytest.mark.skipif(not GROUPS, reason="no control group can be made here")
def test_a_control_group_is_gone_when_its_tree_is() -> None:
    group = make_group(100 * MB)
    assert group is not None
    with group:
        inside = [sys.executable, "-c", "import time; time.sleep(60)"]
        with Child.start(inside, limits=Limits(group=group.entrance)) as child:
            until(lambda: group.entrance.read_text() != "")
            assert str(child.pid) not in group.entrance.read_text().split(), "only the command"
    assert not group.folder.exists()
    assert group.kills == 0
    left = group.folder.with_name("oodatcaa-4194305-0-abcdef")  # beyond the highest pid of Linux
    left.mkdir()
    with make_group(100 * MB) or group:
        assert not left.exists(), "its maker was killed before it could remove it"


BLIND = """
import sys, time
from pathlib import Path
from oodatcaa.training.wall import Guard
class Counters:
    title, looks = "a framework", 0
    def held(self):
        self.looks += 1
        if self.looks > 3:
            raise OSError("no counters any more")
        return 0
    active = peak = held
    def reset(self): pass
with Guard(Path(sys.argv[1]), int(sys.argv[2]), Counters()):
    time.sleep(30)
"""


def test_a_guard_that_can_not_look_any_more_ends_the_run(tmp_path: Path) -> None:
    log = tmp_path / "log"
    argv = [sys.executable, "-c", BLIND, str(tmp_path), str(400 * MB)]
    ended = run_child(argv, folder=tmp_path, log=log, limit=600 * MB)
    assert ended.exit_code == EXIT_BLIND, log.read_text()
    assert memory_stop(ended, log, 600 * MB) is None
    assert "the memory guard can not look any more" in log.read_text()
    assert "no counters any more" in log.read_text()


def test_one_jump_far_beyond_the_limit_is_refused_by_the_kernel(tmp_path: Path) -> None:
    ended, found = stopped(tmp_path, WALLED.format(body=JUMP), 600 * MB)
    assert found.stop is MemoryStop.KERNEL
    assert ended.peak_bytes < 600 * MB
    assert "most likely" in found.message
    assert "Segmentation fault" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("code", "peak", "stop"),
    [
        (-11, 95, MemoryStop.KERNEL),
        (139, 95, MemoryStop.KERNEL),
        (134, 95, MemoryStop.KERNEL),
        (-9, 95, MemoryStop.KERNEL),
        (-11, 20, None),
        (1, 95, None),
        (0, 95, None),
    ],
)
def test_a_deadly_signal_counts_only_close_to_the_limit(
    tmp_path: Path, code: int, peak: int, stop: MemoryStop | None
) -> None:
    found = memory_stop(
        Ended(exit_code=code, peak_bytes=peak, seconds=1.0), tmp_path / "no log", 100
    )
    assert (found.stop if found else None) is stop


@pytest.mark.parametrize(
    "line",
    [
        "RuntimeError: [malloc] Unable to allocate 16000000000 bytes.",
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "MemoryError",
        "libc++abi: [METAL] Command buffer execution failed: Insufficient Memory",
        "error 0000000e:kIOGPUCommandBufferCallbackErrorOutOfMemory",
    ],
)
def test_what_an_allocator_says_is_recognised(tmp_path: Path, line: str) -> None:
    log = tmp_path / "log"
    log.write_text(f"Traceback\n{line}\n")
    found = memory_stop(Ended(exit_code=1, peak_bytes=20, seconds=1.0), log, 100)
    assert found is not None
    assert found.stop is MemoryStop.KERNEL
    assert line in found.message


def test_one_example_fifty_times_longer_is_refused_before_anything_starts(tmp_path: Path) -> None:
    tiny = make_tiny_model(tmp_path / "tiny")
    data = make_tiny_data(tmp_path / "data")
    spec = TrainSpec(
        model=str(tiny),
        data_dir=str(data),
        params=QLoRA(rank=4, num_layers=2, batch_size=8, max_seq_length=8192),
        memory_limit_bytes=300 * MB,
    )
    cache = ProbeCache(tmp_path / "probes")
    assert check_before(Question(spec, tiny, cache).answer(), spec.memory_limit_bytes) is None
    example = json.loads((data / "train.jsonl").read_text().splitlines()[0])
    example["messages"][1]["content"] *= 50
    with (data / "train.jsonl").open("a") as file:
        file.write(json.dumps(example) + "\n")
    refused = check_before(Question(spec, tiny, cache).answer(), spec.memory_limit_bytes)
    assert refused is not None
    assert refused.stop is MemoryStop.PREFLIGHT


def test_runs_that_share_a_machine_share_its_limit(tmp_path: Path) -> None:
    ledger = Reservations(tmp_path)
    with ledger.reserve(4 * MB, 16 * MB) as first:
        assert ledger.allowance(first) == 16 * MB
        with ledger.reserve(6 * MB, 16 * MB) as second:
            assert ledger.allowance(first) + ledger.allowance(second) == 16 * MB
            assert ledger.allowance(second) == 9 * MB
        assert ledger.allowance(first) == 16 * MB
