"""What a model wrote, checked: word for word, or by running it against its tests.

Generated code is run in a child with limits of time, memory and file size, an empty environment
and a folder of its own, and without a network: on Linux in a namespace that has none where the
kernel allows it, elsewhere Python itself refuses sockets. That keeps accidents in; it is not a
prison for code that wants out.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt

from oodatcaa.domain.base import NonEmpty, Record
from oodatcaa.kit.process import Limits, run_command

FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)
PRELUDE = """\
import sys
def _hook(event, args):
    if event.startswith("socket.") and event != "socket.gethostname":
        raise PermissionError("no network here")
sys.addaudithook(_hook)
"""
TAIL = 500


class Outcome(StrEnum):
    PASSED = "passed"
    WRONG = "wrong"
    CRASHED = "crashed"
    TIMEOUT = "timeout"
    LIMIT = "limit"


class CodeLimits(Record):
    """Of one candidate."""

    seconds: PositiveFloat = 10.0
    memory_bytes: PositiveInt = 512_000_000
    file_bytes: PositiveInt = 10_000_000


DEFAULTS = CodeLimits()


class CodeResult(Record):
    """How one candidate did. `isolation` says who refused the network."""

    outcome: Outcome
    tail: str = ""
    isolation: str


class Score(Record):
    """`passed` of `total`; with one candidate a task, pass@1."""

    passed: int = Field(ge=0)
    total: int = Field(ge=0)

    @property
    def share(self) -> float | None:
        """None where nothing was asked: never 0."""
        return self.passed / self.total if self.total else None


def exact_match(text: str, expected: str) -> bool:
    """Equal but for white space at line ends and around the whole."""
    return _lines(text) == _lines(expected)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


def code_of(text: str) -> str:
    """The first fenced block of an answer, or all of it when there is none."""
    found = FENCE.search(text)
    return found.group(1) if found else text


def run_code(answer: str, test: NonEmpty, limits: CodeLimits = DEFAULTS) -> CodeResult:
    """Run the answer's code, then `test`, in one child; passed when both end without an error."""
    namespace = _namespace()
    with tempfile.TemporaryDirectory(prefix="oodatcaa-code-") as made:
        folder = Path(made)
        # The test is a file of its own: code that ends early must not look like a pass.
        (folder / "candidate.py").write_text(code_of(answer) + "\n", encoding="utf-8")
        (folder / "check.py").write_text(_check(test), encoding="utf-8")
        done = run_command(
            [*namespace, sys.executable, "-I", "-S", "-B", str(folder / "check.py")],
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "HOME": made, "LANG": "C.UTF-8"},
            timeout=limits.seconds,
            grace=0.2,
            limits=Limits(
                memory_bytes=limits.memory_bytes,
                cpu_seconds=int(limits.seconds) + 1,
                file_bytes=limits.file_bytes,
            ),
        )
    outcome = Outcome.CRASHED
    if done.timed_out:
        outcome = Outcome.TIMEOUT
    elif done.exit_code == PASSED:
        outcome = Outcome.PASSED
    elif done.exit_code == WRONG:
        outcome = Outcome.WRONG
    elif "MemoryError" in done.tail or "File too large" in done.tail or _killed(done.exit_code):
        outcome = Outcome.LIMIT
    return CodeResult(
        outcome=outcome,
        tail=done.tail[-TAIL:].replace(made, "."),
        isolation="kernel" if namespace else "python",
    )


PASSED, WRONG = 86, 87
"""Exit codes that a candidate does not end with by accident, as `sys.exit()` does with 0."""


def _killed(code: int | None) -> bool:
    """By SIGXCPU or SIGXFSZ, or the kernel's last word."""
    return code in (-24, -25, -9, -11, 152, 153, 137, 139)


def _check(test: str) -> str:
    return (
        f"{PRELUDE}import os, traceback\n"
        "names = {'__name__': 'candidate'}\n"
        "source = open('candidate.py', encoding='utf-8').read()\n"
        "exec(compile(source, 'candidate.py', 'exec'), names)\n"
        "try:\n"
        f"    exec(compile({test!r}, 'test.py', 'exec'), names)\n"
        "except AssertionError:\n"
        "    traceback.print_exc()\n"
        "    sys.stdout.flush()\n"
        f"    os._exit({WRONG})\n"
        "sys.stdout.flush()\n"
        f"os._exit({PASSED})\n"
    )


def pass_at_1(answers: Sequence[tuple[str, str]], limits: CodeLimits = DEFAULTS) -> Score:
    """(answer, test) of each task, one answer for each."""
    results = [run_code(answer, test, limits).outcome for answer, test in answers]
    return Score(passed=results.count(Outcome.PASSED), total=len(results))


@functools.cache
def _namespace() -> tuple[str, ...]:
    """A command before the command that takes the network away, where the kernel has one."""
    words = ("unshare", "--user", "--map-current-user", "--net", "--")
    try:
        done = subprocess.run([*words, "true"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return words if done.returncode == 0 else ()
