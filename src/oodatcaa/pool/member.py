"""One child process of the pool, and the line protocol it speaks."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.memory import tree_memory

LOAD_SECONDS = 600.0
"""For whatever is no request of a client: loading, adapters, memory."""
STOP_SECONDS = 5.0
EXIT_MEMORY = 4
"""How a child ends that its own memory wall stopped."""


class Member:
    """A loaded base model. It ends when it is closed or when this process ends: its standard
    input closes then. One caller at a time. Errors: `pool.timeout`, `pool.died`, `pool.memory`,
    or the child's own."""

    def __init__(
        self, key: str, engine: str, options: Mapping[str, Any], log: Path, timeout: float
    ) -> None:
        self.key = key
        self.log = log
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
            self.loaded = self.ask({"op": "load", **options}, timeout)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    def tree_bytes(self) -> int:
        return tree_memory(self.pid).tree_bytes

    def ask(self, request: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """One request, its last answer."""
        done: dict[str, Any] = {}
        for answer in self.stream(request, timeout):
            done = answer.get("done", done)
        return done

    def stream(
        self, request: Mapping[str, Any], timeout: float
    ) -> Generator[dict[str, Any], None, None]:
        """Every line of the answer; `timeout` seconds for the whole of it.

        Left early, the child is told to stop and its rest is read, so that it is idle again. A
        timed-out child is ended: it can not be trusted to be idle.
        """
        deadline = time.monotonic() + timeout
        over = False
        try:
            self._send(request)
            while not over:
                answer: dict[str, Any] = json.loads(self._read_line(deadline))
                over = "piece" not in answer
                if "error" in answer:
                    e = answer["error"]
                    raise OodatcaaError(
                        e["code"], e["message"], hint=e["hint"], details=e["details"]
                    )
                yield answer
        except (BrokenPipeError, EOFError) as error:
            over = True
            raise self._died() from error
        except TimeoutError as error:
            over = True
            self._child.kill()
            self.close()
            raise OodatcaaError(
                "pool.timeout",
                f"{self.key} did not answer within {timeout:g} s and was unloaded",
                hint="ask for fewer tokens, or allow more time",
            ) from error
        finally:
            if not over:
                self._abandon()

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

    def _abandon(self) -> None:
        deadline = time.monotonic() + STOP_SECONDS * 6
        try:
            self._send({"op": "cancel"})
            while "piece" in json.loads(self._read_line(deadline)):
                pass
        except (OSError, EOFError, TimeoutError):
            self._child.kill()
            self.close()

    def _send(self, request: Mapping[str, Any]) -> None:
        assert self._child.stdin is not None
        if self._child.stdin.closed:
            raise EOFError
        self._child.stdin.write(json.dumps(request).encode() + b"\n")
        self._child.stdin.flush()

    def _died(self) -> OodatcaaError:
        self.close()
        code = self._child.returncode
        if code == EXIT_MEMORY:
            return OodatcaaError(
                "pool.memory",
                f"{self.key} went over the memory limit and was stopped",
                hint="ask for fewer tokens, or raise the memory limit",
            )
        return OodatcaaError(
            "pool.died",
            f"the process serving {self.key} ended with exit code {code}",
            hint=f"read its log: {self.log}",
            details=self._log_tail(),
        )

    def _read_line(self, deadline: float) -> bytes:
        assert self._child.stdout is not None
        if self._child.stdout.closed:
            raise EOFError
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
