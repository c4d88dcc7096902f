"""Another process of this machine that holds a part of the memory limit."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HOLD = """
import sys, time
from pathlib import Path
from oodatcaa.training.reservation import Reservations
ledger, size, limit = sys.argv[1:]
with Reservations(Path(ledger)).reserve(int(size), int(limit), label="somebody"):
    print("held", flush=True)
    time.sleep(100)
"""


@contextlib.contextmanager
def holder(ledger: Path, size: int, limit: int) -> Iterator[subprocess.Popen[str]]:
    """A process that has reserved `size` bytes; ended with the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(ledger), str(size), str(limit)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        end(process)
        process.stdout.close()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
