"""A control group of its own for one process tree: the kernel's exact memory limit, on Linux.

Version 2 (`memory.max`) where the group above lets us make one, as it does below systemd's
`user@.service`, or version 1 (`memory.limit_in_bytes`) as root in older containers. Where neither
is allowed there is none, and the other layers of the memory gate remain. There is none either
where our own version 2 group has a limit: a new group would lie beside it, and so outside of it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

ROOTS = ("sys/fs/cgroup", "sys/fs/cgroup/unified")
V1_ROOT = "sys/fs/cgroup/memory"
LIMITS = ("memory.max", "memory.high", "memory.swap.max")
EMPTY_SECONDS = 2.0
_numbers = itertools.count()


@dataclass(frozen=True)
class MemoryGroup:
    """Made by `make_group`. A process that writes its pid into `entrance`, and all that it starts
    from then on, share `limit_bytes`; beyond it the kernel kills (anonymous memory and page cache
    that can not be given back count). Use it as a context manager: leaving removes the group."""

    folder: Path
    limit_bytes: int

    @property
    def entrance(self) -> Path:
        return self.folder / "cgroup.procs"

    @property
    def occupied(self) -> bool:
        """Whether a process is in it now."""
        return bool(_lines(self.entrance))

    @property
    def kills(self) -> int:
        """How many of its processes the kernel has killed for memory."""
        for name in ("memory.events", "memory.oom_control"):
            for line in _lines(self.folder / name):
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value)
        return 0

    def close(self) -> None:
        """Remove the group. Its last processes may need a moment to be gone; what stays after
        EMPTY_SECONDS is an empty folder of the kernel's and harmless."""
        end = time.monotonic() + EMPTY_SECONDS
        while True:
            try:
                self.folder.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                if time.monotonic() > end:
                    return
                time.sleep(0.02)
            else:
                return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def make_group(limit: int, system: Path = Path("/")) -> MemoryGroup | None:
    """A new group with this limit in bytes; None where this process may not make one.

    `system` is where /proc and /sys are.
    """
    if not sys.platform.startswith("linux"):
        return None
    name = f"oodatcaa-{os.getpid()}-{next(_numbers)}-{secrets.token_hex(3)}"
    for parent, settings in _places(limit, system):
        _sweep(parent)
        folder = parent / name
        try:
            folder.mkdir()
        except OSError:
            continue
        group = MemoryGroup(folder, limit)
        try:
            for setting, value, needed in settings:
                _set(folder / setting, value, needed)
        except OSError:
            group.close()
            continue
        return group
    return None


Setting = tuple[str, str, bool]
"""File, value, and whether the group is worth nothing without it."""


def _places(limit: int, system: Path) -> list[tuple[Path, tuple[Setting, ...]]]:
    """Folders where a group could be made, with what makes it a limit there."""
    found: list[tuple[Path, tuple[Setting, ...]]] = []
    ours = dict(
        line.split(":", 2)[1:]
        for line in _lines(system / "proc/self/cgroup")
        if line.count(":") >= 2
    )
    if (path := ours.get("")) is not None:
        for root in (system / name for name in ROOTS):
            # Beside our own group: one with processes in it may not hand its memory on (v2's rule).
            own = root / path.lstrip("/")
            parent = own.parent if path != "/" else root
            if any(_limited(own / name) for name in LIMITS):
                continue
            if "memory" in " ".join(_lines(parent / "cgroup.subtree_control")).split():
                swap = ("memory.swap.max", "0", False)
                whole = ("memory.oom.group", "1", False)
                found.append((parent, (("memory.max", str(limit), True), swap, whole)))
    for controllers, path in ours.items():
        if "memory" in controllers.split(","):
            bytes_ = str(limit)
            memory = ("memory.limit_in_bytes", bytes_, True)
            swap = ("memory.memsw.limit_in_bytes", bytes_, False)
            found.append((system / V1_ROOT / path.lstrip("/"), (memory, swap)))
    return found


def _limited(path: Path) -> bool:
    return any(line.strip() not in ("", "max") for line in _lines(path))


def _sweep(parent: Path) -> None:
    """Remove groups whose makers were killed; one that still has processes refuses to go."""
    for folder in parent.glob("oodatcaa-*-*-*"):
        maker = folder.name.split("-")[1]
        if not Path("/proc", maker).exists():
            with contextlib.suppress(OSError):
                folder.rmdir()


def _set(path: Path, value: str, needed: bool) -> None:
    try:
        path.write_text(value, encoding="ascii")
    except OSError:
        if needed:
            raise


def _lines(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8").splitlines()
    return []
