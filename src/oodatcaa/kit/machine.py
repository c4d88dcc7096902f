"""Facts about this machine, gathered without importing any framework."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import socket
import sys
from pathlib import Path

import psutil

from oodatcaa.domain.training import Machine


def total_memory() -> int:
    """Bytes this process may hope for: the machine's memory, or its container's limit if lower."""
    total = int(psutil.virtual_memory().total)
    limits = (_number(Path(p)) for p in _CGROUP_LIMITS)
    return min([total, *(limit for limit in limits if limit)])


def gate_limit(limit: int) -> int:
    """The limit that the memory gate holds on this machine: never more than there is.

    On Apple silicon also never more than the working set that Metal recommends: two thirds of up
    to 36 GiB, three quarters above (Apple documents no formula; the worker asks Metal itself).
    """
    total = total_memory()
    if sys.platform == "darwin" and platform.machine() == "arm64":
        share = 2 / 3 if total <= 36 * 2**30 else 3 / 4
        return min(limit, int(total * share))
    return min(limit, total)


_CGROUP_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:  # no such controller here
        return None
    return int(text) if text.isdigit() else None


def in_memory(folder: Path) -> bool:
    """Whether files in `folder` are kept in memory, as those of /tmp are on many Linux systems;
    False where that is not known."""
    device = folder.stat().st_dev
    own = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return False
    mounts = (line.split() for line in lines)
    kinds = {fields[fields.index("-") + 1] for fields in mounts if fields[2] == own}
    return not kinds.isdisjoint({"tmpfs", "ramfs"})


def guess_accelerator() -> str:
    """What mlx will most likely compute on: metal, cuda or cpu; the worker reports the truth."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "metal"
    if Path("/dev/nvidiactl").exists() and _installed("mlx-cuda", "mlx-cuda-12", "mlx-cuda-13"):
        return "cuda"
    return "cpu"


def _installed(*names: str) -> bool:
    for name in names:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return True
    return False


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache
def describe_machine() -> Machine:
    """This machine. `cpu_count` is what the process may use, not what is soldered in."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Machine(
        host=socket.gethostname(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=_processor(),
        cpu_count=usable or 1,
        memory_bytes=total_memory(),
        accelerator=guess_accelerator(),
    )
