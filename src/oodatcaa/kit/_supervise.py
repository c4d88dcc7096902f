"""Stands between a command and whoever started it, so that nothing outlives its starter.

Run by path (`python -I -S _supervise.py CONTROL PARENT OOM LIMITS COMMAND...`), never imported: it
must start in milliseconds and therefore uses the standard library only.

- CONTROL is the read end of a pipe whose other end the starter holds. End of file means that the
  starter is gone, however it died, and everything below is killed at once. A parent-death signal
  alone would not do: on Linux it fires when the starting *thread* ends, on macOS it does not exist.
- LIMITS is `-` or `DATA=bytes,CPU=seconds,FSIZE=bytes`: resource limits of the command alone; and
  `GROUP=cgroup.procs`, the control group that it enters first (one that is gone is passed over).
- SIGTERM is passed on to the command's process group.
- When the command ends, whatever it left behind is killed, and its exit status is mirrored.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LINUX = sys.platform.startswith("linux")
SWEEP_SECONDS = 5.0


def prctl(option: int, value: int) -> None:
    """Linux only; a kernel that refuses leaves the pipe and the process group to do the work."""
    if LINUX:
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def limit(text: str) -> None:
    """Set the named resource limits, never above what is allowed already."""
    for item in text.split(",") if text != "-" else ():
        name, _, value = item.partition("=")
        if name == "GROUP":
            with contextlib.suppress(OSError):
                Path(value).write_text(str(os.getpid()), encoding="ascii")
            continue
        kind = getattr(resource, f"RLIMIT_{name}")
        soft = int(value)
        hard = resource.getrlimit(kind)[1]
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
        # One second between the CPU limit's SIGXCPU and its SIGKILL; the others have one edge.
        above = soft + 1 if name == "CPU" and hard == resource.RLIM_INFINITY else soft
        resource.setrlimit(kind, (soft, above))


def start(argv: list[str], control: int, oom_first: bool, limits: str) -> int:
    """Fork and exec the command in its own process group; its pid."""
    me = os.getpid()
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        return pid
    try:
        os.setpgid(0, 0)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != me:
            os._exit(137)
        os.close(control)
        # The interpreter ignores these two; the command must start with the system's defaults.
        for name in ("SIGPIPE", "SIGXFSZ"):
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        if oom_first and LINUX:
            # Should the machine run out of memory all the same, this one goes first.
            with contextlib.suppress(OSError):
                Path("/proc/self/oom_score_adj").write_text("800", encoding="ascii")
        limit(limits)
        os.execvp(argv[0], argv)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        os.write(2, f"{argv[0]}: {reason}\n".encode())
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)
    os._exit(126)


def descendants() -> list[int]:
    """Every process below this one (Linux; orphans come to us because we are their subreaper)."""
    if not LINUX:
        return []
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - plain names are what is wanted, fast
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8", errors="replace")
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    found: list[int] = []
    front = [os.getpid()]
    while front:
        below = children.get(front.pop(), [])
        found += below
        front += below
    return found


def reap(target: int) -> int | None:
    """Collect everything that ended; the target's wait status once it did."""
    status = None
    while True:
        try:
            pid, code = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid == 0:
            return status
        if pid == target:
            status = code


def sweep(target: int) -> int | None:
    """Kill all that is left, again and again: a process may fork while we look."""
    status = None
    deadline = time.monotonic() + SWEEP_SECONDS
    while True:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(target, signal.SIGKILL)
        left = descendants()
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        code = reap(target)
        status = code if code is not None else status
        if not left or time.monotonic() > deadline:
            return status
        time.sleep(0.01)


def end_like(status: int) -> None:
    """Leave with the command's own exit code, or by the signal that ended it."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        time.sleep(1)
        os._exit(128 + number)
    os._exit(os.waitstatus_to_exitcode(status))


def main() -> None:
    control, parent, oom_first = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1"
    wake, wake_in = os.pipe()
    for end in (wake, wake_in):
        os.set_blocking(end, False)
    asked = []
    signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: asked.append(True))
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    target = start(sys.argv[5:], control, oom_first, sys.argv[4])
    # Not select(): it can not watch descriptors from 1024 on, and a starter may hold many.
    waiting = select.poll()
    for end in (control, wake):
        waiting.register(end, select.POLLIN)
    status = None
    while status is None:
        ready = [end for end, _ in waiting.poll(1000)]
        if wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
        if asked:
            asked.clear()
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(target, signal.SIGTERM)
        status = reap(target)
        if status is None and (control in ready or os.getppid() != parent):
            sweep(target)
            os._exit(137)
    # The group id stays ours while a member lives; sweep() also ends what the command left behind.
    sweep(target)
    end_like(status)


if __name__ == "__main__":
    main()
