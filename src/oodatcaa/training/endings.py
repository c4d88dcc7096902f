"""How a child ended, and what that means: stopped at the memory gate, out of disk, or a crash."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass
from pathlib import Path

from oodatcaa.domain.memory import MemoryLayer, MemoryStop
from oodatcaa.domain.training import FailureKind, RunFailure
from oodatcaa.training.estimate import gb
from oodatcaa.training.protocol import EXIT_MEMORY, StopNote, WallNote

TAIL_LINES = 15
NEAR = 0.9
"""A child killed by a signal after it held this share of the limit ran out of memory."""
OUT_OF_MEMORY = re.compile(
    r"unable to allocate|can't allocate memory|not enough memory|attempting to allocate"
    r"|std::bad_alloc|MemoryError|cannot allocate memory|insufficient memory"
    r"|ErrorOutOfMemory|out of memory|cudaErrorMemoryAllocation",
    re.IGNORECASE,
)
"""What mlx, torch, Python, C++ and the system say when an allocation is refused."""
SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
"""What a process dies of when memory is refused: the kernel's killer, or code that did not check
what malloc returned (MLX's CPU build)."""
CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
HINT = "smaller batch_size with grad_accumulation_steps, grad_checkpoint, fewer num_layers"


@dataclass(frozen=True)
class Ended:
    """How a child ended. `over_bytes` is set when the watcher stopped it at `over_limit`;
    `longest_gap` is the watch's, in seconds."""

    exit_code: int
    peak_bytes: int
    seconds: float
    longest_gap: float = 0.0
    over_bytes: int | None = None
    over_limit: int | None = None
    stop_note: StopNote | None = None
    wall_note: WallNote | None = None
    watch_error: str | None = None
    asked_to_stop: bool = False
    grouped: bool = False
    """Whether the tree was seen in a control group of its own."""
    group_kills: int = 0
    """Processes that the kernel killed at the limit of the tree's control group."""

    def over_share(self, limit: int) -> bool:
        """Whether the watcher stopped it although it was within `limit`: others held the rest."""
        return self.over_bytes is not None and self.over_bytes <= limit

    @property
    def died_of(self) -> signal.Signals | None:
        """The signal that ended it, also when a shell or supervisor reports 128 + number."""
        number = -self.exit_code if self.exit_code < 0 else self.exit_code - 128
        try:
            return signal.Signals(number) if number > 0 else None
        except ValueError:
            return None


def memory_stop(ended: Ended, log: Path, limit: int) -> RunFailure | None:
    """The memory gate's failure with its precise layer; None when memory was not the reason.

    In the order of certainty: the watcher's own look, the child's own note, a kill at the limit of
    the tree's control group (counted by the kernel), an allocation error in
    the log's end, a deadly signal close to the limit. Last, a crash under the kernel's limit:
    MLX's CPU build does not check what malloc returns and ends in SIGSEGV when a single
    allocation is refused, however far from the limit it was. The message says "most likely".
    """
    if ended.over_bytes is not None:
        held = ended.over_limit if ended.over_limit is not None else limit
        return memory_failure(ended.over_bytes, held, MemoryStop.WATCHER)
    note = ended.stop_note
    if note is not None and ended.exit_code == EXIT_MEMORY:
        needed = max(note.mlx_bytes, note.process_bytes)
        return memory_failure(needed, note.limit_bytes, MemoryStop.STEP)
    if ended.group_kills and ended.exit_code != 0:
        least = max(limit, ended.peak_bytes)
        found = _kernel(ended, limit, "it was at the limit of its control group")
        return found.evolve(needed_bytes=least)
    if ended.exit_code == 0 or ended.asked_to_stop:
        return None
    said = next((line for line in reversed(log_tail(log)) if OUT_OF_MEMORY.search(line)), None)
    if said is not None:
        return _kernel(ended, limit, said)
    died = ended.died_of
    if died in SIGNALS and ended.peak_bytes >= NEAR * limit:
        return _kernel(ended, limit, f"ended by {died.name} close to the limit")
    line = ended.wall_note.kernel_bytes if ended.wall_note else None
    if died in CRASHES and line is not None:
        said = f"ended by {died.name}, most likely an allocation beyond {gb(line)} of data"
        return _kernel(ended, limit, said)
    return None


def memory_failure(needed: int, limit: int, stop: MemoryStop | None) -> RunFailure:
    """`failed: memory_gate`, with its numbers; without a stop the run was measured afterwards."""
    over = gb(needed - limit) if needed - limit >= 5_000_000 else f"{needed - limit} bytes"
    how = f"and was stopped (memory_gate: {stop})" if stop else "although it was not stopped"
    return RunFailure(
        kind=FailureKind.MEMORY_GATE,
        layer=MemoryLayer.DURING if stop else MemoryLayer.AFTER,
        stop=stop,
        message=f"the run reached {gb(needed)}, {over} over the limit of {gb(limit)}, {how}",
        needed_bytes=needed,
        limit_bytes=limit,
        hint=HINT,
    )


def _kernel(ended: Ended, limit: int, said: str) -> RunFailure:
    """The kernel refuses before the memory is there, so how much was wanted is not known."""
    return RunFailure(
        kind=FailureKind.MEMORY_GATE,
        layer=MemoryLayer.DURING,
        stop=MemoryStop.KERNEL,
        message=(
            f"the system refused the run more memory (memory_gate: kernel) at "
            f"{gb(ended.peak_bytes)} of {gb(limit)}: {said.strip()}"
        ),
        limit_bytes=limit,
        hint=HINT,
    )


def log_tail(log: Path, lines: int = TAIL_LINES) -> tuple[str, ...]:
    """The last lines of a log that say something."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 16_384))
            text = file.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ()
    return tuple(line.rstrip() for line in text.splitlines() if line.strip())[-lines:]


def crash_failure(ended: Ended, log: Path) -> RunFailure:
    """Why a child that described nothing ended, with the end of its log."""
    tail = log_tail(log)
    last = tail[-1] if tail else "its log is empty"
    died = ended.died_of
    if ended.watch_error is not None:
        kind, what = FailureKind.CRASH, f"the memory watch failed: {ended.watch_error}"
    elif any("No space left on device" in line or "Errno 28]" in line for line in tail):
        kind, what = FailureKind.DISK_FULL, f"no space left on device: {last}"
    elif died is signal.SIGKILL:
        kind, what = FailureKind.KILLED, "killed by a signal from outside (out of memory?)"
    elif died is not None:
        kind, what = FailureKind.CRASH, f"ended by signal {died.value}; last line: {last}"
    else:
        kind, what = FailureKind.CRASH, f"exit code {ended.exit_code}; last line: {last}"
    return RunFailure(kind=kind, message=what, hint=f"read {log}")
