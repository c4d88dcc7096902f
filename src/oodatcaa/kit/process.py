"""Child processes that are bounded in time and output and never outlive whoever started them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil

from oodatcaa.domain.base import Record
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.alive import is_alive as is_alive
from oodatcaa.kit.alive import process_identity as process_identity

SUPERVISOR = Path(__file__).with_name("_supervise.py")
TAIL_BYTES = 8_000
"""How much of the end of an output a result carries along."""
MAX_OUTPUT_BYTES = 20_000_000
"""What an output file may hold; the middle of a longer output is left out and said so."""
POLL_SECONDS = 0.1


class CommandResult(Record):
    """What a command did. `exit_code` is None when it was ended before it could say (timeout,
    stop); a negative one is the signal that ended it, 127 a program that does not exist."""

    exit_code: int | None
    duration: float
    output_sha256: str
    """Of the stored output: of the file when there is one."""
    output_bytes: int
    """What the command wrote, also when less was stored."""
    tail: str
    timed_out: bool = False
    stopped: bool = False
    truncated: bool = False

    @property
    def ok(self) -> bool:
        return self.exit_code == 0


class Limits(Record):
    """Resource limits of each process of a command, set by the kernel. None = as inherited.

    `memory_bytes` bounds private memory (RLIMIT_DATA); macOS does not enforce it, so there only
    the time limits hold. Exceeding `cpu_seconds` or `file_bytes` ends the process by a signal.
    """

    memory_bytes: int | None = None
    cpu_seconds: int | None = None
    file_bytes: int | None = None
    group: Path | None = None
    """The entrance of a control group (`kit.cgroup`) for the whole tree."""

    def argument(self) -> str:
        """For the supervisor."""
        memory = self.memory_bytes if sys.platform.startswith("linux") else None
        values = {
            "GROUP": self.group,
            "DATA": memory,
            "CPU": self.cpu_seconds,
            "FSIZE": self.file_bytes,
        }
        return ",".join(f"{name}={value}" for name, value in values.items() if value) or "-"


NO_LIMITS = Limits()


class Child:
    """A long-running command in its own session, with its whole tree in hand.

    It dies with the process that started it, also when that one is killed with SIGKILL: a small
    supervisor in between notices (see `_supervise.py`). `pid` is the supervisor's; the command and
    everything it starts are its descendants. Use it as a context manager, or end it yourself.
    """

    def __init__(self, popen: subprocess.Popen[bytes], control: int) -> None:
        self._popen = popen
        self._control: int | None = control
        self._closing = threading.Lock()
        self.pid = popen.pid
        try:
            self.create_time = process_identity(popen.pid)[1]
        except OodatcaaError:  # already over
            self.create_time = -1.0

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        log_path: Path | None = None,
        oom_first: bool = False,
        output: IO[bytes] | int | None = None,
        stdin: IO[bytes] | int = subprocess.DEVNULL,
        stderr: IO[bytes] | int = subprocess.STDOUT,
        limits: Limits = NO_LIMITS,
    ) -> Child:
        """Start `argv`; stdout and stderr are appended to `log_path` (or go to `output`, or away).

        stdin is empty and stderr goes where stdout goes, unless said otherwise.

        `oom_first` asks the Linux kernel to take this tree first, should memory run out.
        Raises OodatcaaError when the folder `cwd` does not exist; an unknown program is exit 127.
        """
        if cwd is not None and not cwd.is_dir():
            raise OodatcaaError("process.no_folder", f"no such folder: {cwd}")
        read_end, write_end = os.pipe()
        log = log_path.open("ab") if log_path is not None else None
        target: IO[bytes] | int = log if log is not None else (output or subprocess.DEVNULL)
        command = [sys.executable, "-I", "-S", str(SUPERVISOR), str(read_end), str(os.getpid())]
        try:
            popen = subprocess.Popen(
                [*command, "1" if oom_first else "0", limits.argument(), *argv],
                cwd=cwd,
                env=None if env is None else dict(env),
                stdin=stdin,
                stdout=target,
                stderr=stderr,
                pass_fds=(read_end,),
                start_new_session=True,
            )
        except BaseException:
            os.close(write_end)
            raise
        finally:
            os.close(read_end)
            if log is not None:
                log.close()
        return cls(popen, write_end)

    @property
    def stdin(self) -> IO[bytes] | None:
        """The write end, when started with stdin=subprocess.PIPE."""
        return self._popen.stdin

    @property
    def stdout(self) -> IO[bytes] | None:
        """The read end, when started with output=subprocess.PIPE."""
        return self._popen.stdout

    def poll(self) -> int | None:
        """The exit code once it ended (negative: the signal), None while it runs."""
        code = self._popen.poll()
        if code is not None:
            self._let_go()
        return code

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code, or None when it still runs after `timeout` seconds."""
        try:
            self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        return self.poll()

    def ask_to_stop(self) -> None:
        """SIGTERM to the command's process group; returns at once."""
        if self.poll() is None:
            self._popen.send_signal(signal.SIGTERM)

    def terminate(self, grace: float = 10.0) -> int:
        """SIGTERM, `grace` seconds, SIGKILL for the whole tree; the exit code."""
        self.ask_to_stop()
        code = self.wait(grace)
        return self.kill() if code is None else code

    def kill(self) -> int:
        """SIGKILL for the whole tree at once, and wait until it is gone; the exit code."""
        code = self.poll()
        if code is not None:
            return code
        kill_below(self.pid)
        self._let_go()  # the supervisor sweeps up whatever was forked meanwhile
        code = self.wait(SWEEP_SECONDS)
        if code is None:
            self._popen.kill()
            code = self._popen.wait()
        return code

    def _let_go(self) -> None:
        with self._closing:  # a watcher may kill while the owner waits; close(2) only once
            if self._control is not None:
                os.close(self._control)
                self._control = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


SWEEP_SECONDS = 10.0


def kill_below(pid: int) -> None:
    """SIGKILL every descendant of `pid`, not `pid` itself. Processes that vanish are fine."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


class BoundedOutput:
    """Hashes and stores a bounded output: the first part as it comes, then only the last part."""

    def __init__(self, path: Path | None, limit: int) -> None:
        self._file = path.open("wb") if path is not None else None
        self._hash = hashlib.sha256()
        self._head_left = limit - min(limit // 4, 1_000_000)
        self._keep = max(TAIL_BYTES, limit - self._head_left)
        self._stored = 0
        self._recent = bytearray()
        self.total = 0

    def add(self, chunk: bytes) -> None:
        self.total += len(chunk)
        head = chunk[: self._head_left]
        if head:
            self._store(head)
            self._head_left -= len(head)
        self._recent += chunk
        if len(self._recent) > 2 * self._keep:
            del self._recent[: -self._keep]

    def finish(self) -> tuple[str, str, bool]:
        """(sha256, tail, truncated)"""
        left = self.total - self._stored
        kept = min(self._keep, left)
        rest = bytes(self._recent[len(self._recent) - kept :])
        missing = left - kept
        if missing:
            self._store(f"\n[... {missing} bytes left out ...]\n".encode())
        self._store(rest)
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        tail = bytes(self._recent[-TAIL_BYTES:]).decode("utf-8", errors="replace")
        return self._hash.hexdigest(), tail, missing > 0

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _store(self, data: bytes) -> None:
        self._hash.update(data)
        self._stored += len(data)
        if self._file is not None:
            self._file.write(data)


class BoundedSink:
    """A write end for a child's stderr, of which at most about `limit` bytes are kept in a file.

    Use it as a context manager around the child, and call `started` once the child has the pipe.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self._read, self.pipe = os.pipe()
        self._output = BoundedOutput(path, limit)
        self._open = True
        self._thread = threading.Thread(target=self._drain, name="stderr", daemon=True)

    def started(self) -> None:
        self._close_ours()
        self._thread.start()

    def _close_ours(self) -> None:
        if self._open:
            self._open = False
            os.close(self.pipe)

    def _drain(self) -> None:
        with contextlib.suppress(OSError), os.fdopen(self._read, "rb", buffering=0) as file:
            while chunk := file.read(1 << 16):
                self._output.add(chunk)
        self._output.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_ours()
        if self._thread.ident is None:
            os.close(self._read)
            self._output.close()
        else:
            self._thread.join(SWEEP_SECONDS)  # the tree is dead: its ends are closed


def run_command(
    command: str | Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    grace: float = 5.0,
    output_path: Path | None = None,
    max_output: int = MAX_OUTPUT_BYTES,
    should_stop: Callable[[], bool] | None = None,
    limits: Limits = NO_LIMITS,
    on_start: Callable[[Child], None] | None = None,
) -> CommandResult:
    """Run a command to its end, or to `timeout` seconds, and say what it did.

    A string goes through `/bin/sh -c`. stdout and stderr come together, in order, into
    `output_path` (at most about `max_output` bytes: the beginning and the end). On timeout, when
    `should_stop` says so, or on Ctrl-C the whole tree is ended: SIGTERM, `grace` seconds, SIGKILL.
    Background processes that the command leaves behind are killed too.
    """
    argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
    started = time.monotonic()
    output = BoundedOutput(output_path, max_output)
    child = Child.start(argv, cwd=cwd, env=env, output=subprocess.PIPE, limits=limits)
    with contextlib.closing(output), child:
        if on_start is not None:
            on_start(child)
        deadline = None if timeout is None else started + timeout
        ended = _pump(child, output, deadline, should_stop)
        if ended:
            # The pipe must be drained meanwhile, or a chatty command can not end in its grace.
            child.ask_to_stop()
            _pump(child, output, time.monotonic() + grace, None)
            child.kill()
            _pump(child, output, time.monotonic() + 1.0, None)
        code = child.wait()
        digest, tail, truncated = output.finish()
    return CommandResult(
        exit_code=None if ended else code,
        duration=time.monotonic() - started,
        output_sha256=digest,
        output_bytes=output.total,
        tail=tail,
        timed_out=ended == "timeout",
        stopped=ended == "stop",
        truncated=truncated,
    )


def _pump(
    child: Child,
    output: BoundedOutput,
    deadline: float | None,
    should_stop: Callable[[], bool] | None,
) -> str:
    """Copy output until the child ended; why it went no further: "", "timeout" or "stop"."""
    assert child.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if should_stop is not None and should_stop():
                return "stop"
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return "timeout"
            pause = POLL_SECONDS if should_stop is not None else 1.0
            pause = pause if left is None else min(left, pause)
            if not selector.get_map():
                # A command may close its output and go on; it is bounded all the same.
                if child.wait(pause) is not None:
                    return ""
            elif selector.select(pause):
                chunk = os.read(child.stdout.fileno(), 1 << 16)
                output.add(chunk)
                if not chunk:
                    selector.unregister(child.stdout)
