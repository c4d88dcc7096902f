"""docs/benchmarks.md: every benchmark writes its own section between markers."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil

from oodatcaa.kit.files import write_atomic

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_HEAD = """\
# Benchmarks

The figures of every section below were measured by the command that it names, on the machine that
it names. To measure on yours, run the command again: it replaces its section, with whatever a
person explained there since, and leaves the others alone.
"""


def write_section(name: str, body: str, page: Path = PAGE) -> None:
    """Replace the section `name` of `page`, or add it at the end. Other text stays as it is."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    old = page.read_text(encoding="utf-8") if page.exists() else _HEAD
    section = f"{begin}\n{body.strip()}\n{end}"
    before, found, rest = old.partition(begin)
    if not found:
        write_atomic(page, f"{old.rstrip()}\n\n{section}\n")
        return
    _, closed, after = rest.partition(end)
    if not closed:
        raise SystemExit(f"{page}: {begin} has no {end}; put it back, then run this again")
    write_atomic(page, before + section + after)


def measured_with(command: str, packages: Iterable[str], extra: Sequence[str] = ()) -> str:
    """The line under a section's heading: command, date, commit, machine and versions."""
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{name} {version(name)}" for name in packages]
    return (
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, commit {_commit()}. {machine()}. "
        f"{', '.join([*versions, *extra])}."
    )


def machine() -> str:
    """The processor and memory, and how busy the machine was already."""
    memory = psutil.virtual_memory().total / 1e9
    busy = os.getloadavg()[0]
    return (
        f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GB, {platform.system()} "
        f"{platform.machine()}, load before the run {busy:.1f}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def _commit() -> str:
    asked = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(asked, cwd=PAGE.parents[1], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
