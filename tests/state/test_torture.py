"""The short form of benchmarks/torture.py, which runs for minutes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "torture.py"


def test_a_few_seconds_of_torture() -> None:
    command = [sys.executable, str(PROGRAM), "--seconds", "6", "--processes", "8", "--tasks", "12"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(re.findall(r"^(killed with -9|transitions|violations): (\d+)", done.stdout, re.M))
    assert int(counts["killed with -9"]) > 0
    assert int(counts["transitions"]) > 20
    assert counts["violations"] == "0"
