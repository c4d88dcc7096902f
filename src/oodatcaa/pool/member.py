"""One child process of the pool, and the line protocol it speaks."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.memory import tree_memory

STOP_SECONDS = 5.0


class Member:
    """A loaded (model, adapter) pair. It ends when it is closed or when this process ends: its
    standard input closes then. Errors: `pool.timeout`, `pool.died`, or the child's own."""

    def __init__(
        self, key: str, engine: str, options: Mapping[str, Any], log: Path, timeout: float
    ) -> None:
        self.key = key
        self.log = log
        self.used = time.monotonic()
        self.answered = 0
        self._buffer = b""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "oodatcaa.pool.mlx.server", engine],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        try:
            self.load_seconds = float(self.ask({"op": "load", **options}, timeout)["load_seconds"])
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def memory_bytes(self) -> int:
        return tree_memory(self.pid).tree_bytes

    def ask(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """One request, one answer. A timed-out child is ended: it can not be trusted to be idle."""
        self.used = time.monotonic()
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(request).encode() + b"\n")
            self._child.stdin.flush()
            line = self._read_line(time.monotonic() + timeout)
        except (BrokenPipeError, EOFError) as error:
            self.close()
            raise OodatcaaError(
                "pool.died",
                f"the process serving {self.key} ended with exit code {self._child.returncode}",
                hint=f"read its log: {self.log}",
                details=self._log_tail(),
            ) from error
        except TimeoutError as error:
            self._child.kill()
            self.close()
            raise OodatcaaError(
                "pool.timeout",
                f"{self.key} did not answer within {timeout:g} s and was unloaded",
                hint="ask for fewer tokens, or allow more time",
            ) from error
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            e = answer["error"]
            raise OodatcaaError(e["code"], e["message"], hint=e["hint"], details=e["details"])
        self.answered += 1
        return answer

    def close(self) -> None:
        """End the child and wait for it; safe to call twice."""
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            # An idle child ends by itself at the end of its input.
            self._child.wait(0.5 if self.alive else 0.0)
        except subprocess.TimeoutExpired:
            self._child.terminate()
            try:
                self._child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()

    def _read_line(self, deadline: float) -> bytes:
        assert self._child.stdout is not None
        handle = self._child.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(handle, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                if not (data := os.read(handle, 65536)):
                    raise EOFError
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _log_tail(self) -> list[str]:
        return self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-8:]
