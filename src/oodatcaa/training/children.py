"""Runs a training child under the memory watch and says how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

import oodatcaa
from oodatcaa.domain.base import Record
from oodatcaa.errors import OodatcaaError, RefusedError
from oodatcaa.kit.cgroup import MemoryGroup, make_group
from oodatcaa.kit.files import write_atomic
from oodatcaa.kit.memory import MemoryWatch
from oodatcaa.kit.process import Child, Limits
from oodatcaa.training.endings import Ended, crash_failure, log_tail, memory_stop
from oodatcaa.training.estimate import gb
from oodatcaa.training.identity import pinned
from oodatcaa.training.protocol import (
    CHILD_LOG,
    EXIT_DESCRIBED,
    EXIT_OK,
    FAST_CPU,
    REQUEST_FILE,
    RESULT_FILE,
    STOP_FILE,
    WALL_FILE,
    ChildError,
    StopNote,
    WallNote,
)

POLL_SECONDS = 0.2
STOP_GRACE = 120.0
"""Seconds a worker gets after SIGTERM: it ends its iteration and saves a checkpoint."""
ASK_GRACE = 5.0
"""Of a child that has nothing to save."""
R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class ChildSettings:
    """What the project's configuration says about children: `[training]` of config.toml."""

    sample_interval_ms: int = 25
    fast_cpu: bool = True
    control_group: bool = True
    trackers: tuple[str, ...] = ()


DEFAULTS = ChildSettings()

HEAP = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
"""glibc (mallopt(3)): keep freed blocks. MLX's CPU device frees and takes its temporaries at every
operation; by default each of them is a new mapping whose pages the kernel fills with zeros. Large
pages (`glibc.malloc.hugetlb`) gained 1 % of time, and made peaks of small steps too uneven to
forecast from."""
TORCH_HEAP = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
"""PyTorch's tensors as mappings of their own, given back when they are freed. In the heap small
blocks settle between them: it grew to three times of what was in use, for 15 % of processor time
at sizes where a step is short."""


def run_child(
    argv: list[str],
    *,
    folder: Path,
    log: Path,
    limit: int,
    samples: Path | None = None,
    on_start: Callable[[int], None] | None = None,
    on_tick: Callable[[int], None] | None = None,
    allowance: Callable[[], int] | None = None,
    should_stop: Callable[[], bool] | None = None,
    grace: float = STOP_GRACE,
    settings: ChildSettings = DEFAULTS,
    backend: str = "mlx",
) -> Ended:
    """Run `argv` to its end under the watch. `on_tick` gets the tree's memory, several times a
    second. `allowance`, asked before the start and every POLL_SECONDS, may lower the watch's limit
    when others need their share. When `should_stop` says so the child gets SIGTERM and `grace`
    seconds. An exception from any callback, Ctrl-C included, ends the whole tree before it travels
    on.
    """
    with contextlib.ExitStack() as stack:
        group = make_group(limit) if settings.control_group else None
        if group is not None:
            stack.enter_context(group)
        return _watched(
            argv, folder, log, limit, group, samples, on_start, on_tick, allowance, should_stop,
            grace, settings, backend,
        )  # fmt: skip


def _watched(
    argv: list[str],
    folder: Path,
    log: Path,
    limit: int,
    group: MemoryGroup | None,
    samples: Path | None,
    on_start: Callable[[int], None] | None,
    on_tick: Callable[[int], None] | None,
    allowance: Callable[[], int] | None,
    should_stop: Callable[[], bool] | None,
    grace: float,
    settings: ChildSettings,
    backend: str,
) -> Ended:
    started = time.monotonic()
    allowed = limit if allowance is None else min(limit, allowance())
    child = Child.start(
        argv,
        cwd=folder,
        env=child_environment(settings, backend),
        log_path=log,
        oom_first=True,
        limits=Limits(group=group.entrance if group else None),
    )
    watch = MemoryWatch(
        child.pid,
        allowed,
        interval=settings.sample_interval_ms / 1000,
        on_over=lambda _: _kill(child),
        path=samples,
    )
    asked_at: float | None = None
    grouped = False
    with child, watch:
        if on_start is not None:
            on_start(child.pid)
        while (code := child.wait(POLL_SECONDS)) is None:
            # The entry may be refused, and then the other layers are all there is.
            grouped = grouped or (group is not None and group.occupied)
            if on_tick is not None:
                on_tick(watch.current_bytes)
            if allowance is not None:
                watch.limit = min(limit, allowance())
            if asked_at is None and should_stop is not None and should_stop():
                asked_at = time.monotonic()
                child.ask_to_stop()
            if asked_at is not None and time.monotonic() - asked_at > grace:
                child.kill()
    return Ended(
        exit_code=code,
        peak_bytes=watch.peak_bytes,
        longest_gap=watch.longest_gap,
        seconds=time.monotonic() - started,
        over_bytes=None if watch.over is None else watch.over.peak_bytes,
        over_limit=watch.over_limit,
        stop_note=_note(folder / STOP_FILE, StopNote),
        wall_note=_note(folder / WALL_FILE, WallNote),
        watch_error=None if watch.error is None else repr(watch.error),
        asked_to_stop=asked_at is not None,
        grouped=grouped,
        group_kills=group.kills if group else 0,
    )


def _kill(child: Child) -> None:
    child.kill()


def _note(path: Path, kind: type[R]) -> R | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def child_environment(settings: ChildSettings, backend: str = "mlx") -> dict[str, str]:
    """This process's, with what makes a child of `backend` compute fast, repeatably, within little
    memory, and with this very code."""
    # The tokenizer's threads would fork-warn and compete with the BLAS; output must not linger.
    env = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    env.update(pinned(env))
    if not settings.fast_cpu:
        env[FAST_CPU] = "0"
    if sys.platform.startswith("linux"):
        env = {**_heap(settings, backend), **env}
    # A child must run the very code of its parent: paths given relative to our folder, or a
    # worktree's own source, would otherwise be lost or replaced by an installed version.
    root = Path(oodatcaa.__file__).resolve().parent.parent
    if root.name not in ("site-packages", "dist-packages"):
        given = [str(Path(p).resolve()) for p in env.get("PYTHONPATH", "").split(os.pathsep) if p]
        env["PYTHONPATH"] = os.pathsep.join([str(root), *(p for p in given if p != str(root))])
    return env


def _heap(settings: ChildSettings, backend: str) -> dict[str, str]:
    if backend != "mlx":
        return TORCH_HEAP
    return HEAP if settings.fast_cpu else {}


def child_command(name: str, folder: Path) -> list[str]:
    """`name` is `<backend>.<child>`. `-P`: the folder a child runs in must not shadow the packages
    it imports."""
    return [sys.executable, "-P", "-m", f"oodatcaa.training.{name}", str(folder)]


def read_result(folder: Path, kind: type[R]) -> R | ChildError | None:
    """result.json as what it is; None when there is none or it is not readable."""
    try:
        raw = (folder / RESULT_FILE).read_bytes()
        value = json.loads(raw)
        if isinstance(value, dict) and set(value) == {"error"}:
            return ChildError.model_validate(value["error"])
        return kind.model_validate_json(raw)
    except (OSError, ValueError, ValidationError):
        return None


@contextmanager
def _work_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="oodatcaa-") as name:
        yield Path(name).resolve()


def ask_child(
    name: str,
    request: Record,
    kind: type[R],
    limit: int,
    settings: ChildSettings = DEFAULTS,
    should_stop: Callable[[], bool] | None = None,
    allowance: Callable[[], int] | None = None,
) -> tuple[R, Ended]:
    """One request to a short-lived child, under the memory limit, or under `allowance` where that
    is less (as in `run_child`).

    Raises OodatcaaError: what the child said, `child.crashed` with the log's tail,
    `child.stopped` when `should_stop` said so, or RefusedError: `child.memory_gate`, and
    `reservation.outgrown` when it was within the limit but over its allowance. The child is gone
    by then.
    """
    with _work_folder() as folder:
        write_atomic(folder / REQUEST_FILE, request.model_dump_json(indent=1) + "\n")
        log = folder / CHILD_LOG
        ended = run_child(
            child_command(name, folder),
            folder=folder,
            log=log,
            limit=limit,
            settings=settings,
            allowance=allowance,
            should_stop=should_stop,
            grace=ASK_GRACE,
            backend=name.partition(".")[0],
        )
        _must_fit(name, ended, log, limit)
        result = read_result(folder, kind)
        if isinstance(result, ChildError) and ended.exit_code == EXIT_DESCRIBED:
            raise OodatcaaError(
                result.code, result.message, hint=result.hint, details=result.details
            )
        if ended.asked_to_stop and ended.exit_code != EXIT_OK:
            raise OodatcaaError(
                "child.stopped",
                f"{name} was stopped before it answered",
                hint="run the same command again",
            )
        if not isinstance(result, kind) or ended.exit_code != EXIT_OK:
            raise OodatcaaError(
                "child.crashed",
                f"{name} did not answer: {crash_failure(ended, log).message}",
                hint="oodatcaa doctor",
                details=log_tail(log),
            )
        return result, ended


def _must_fit(name: str, ended: Ended, log: Path, limit: int) -> None:
    stopped = memory_stop(ended, log, limit)
    if stopped is None:
        return
    if ended.over_share(limit):
        raise RefusedError(
            "reservation.outgrown",
            f"{name}: {stopped.message}; others on this machine hold the rest of {gb(limit)}",
            hint="run the same command again when they have ended",
        )
    raise RefusedError(
        "child.memory_gate",
        f"{name}: {stopped.message}",
        hint="a smaller model, shorter max_seq_length, or a higher memory_limit",
    )
