"""Writes, fsyncs and renames, each with named points where a test may let the process die."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from oodatcaa.kit import faults
from oodatcaa.kit.faults import reach
from oodatcaa.kit.files import sync_folder


def write_at(handle: int, data: bytes, offset: int, name: str) -> None:
    """Write all of `data` at `offset`, going on after short writes. Raises OSError."""
    reach(f"{name}.before_write")
    if faults.armed():  # a test may want the process to die with half a line written
        half = len(data) // 2
        _write_all(handle, data[:half], offset)
        reach(f"{name}.half_written")
        data, offset = data[half:], offset + half
    _write_all(handle, data, offset)
    reach(f"{name}.after_write")


def _write_all(handle: int, data: bytes | memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(handle, data, offset)
        if written == len(data):
            return
        data, offset = memoryview(data)[written:], offset + written


def sync(handle: int, name: str) -> None:
    reach(f"{name}.before_fsync")
    os.fsync(handle)
    reach(f"{name}.after_fsync")


def sync_data(handle: int, name: str) -> None:
    """Like `sync`, without the file's times: where the file did not grow, the file system's own
    journal has nothing to write."""
    reach(f"{name}.before_fsync")
    getattr(os, "fdatasync", os.fsync)(handle)  # macOS has only fsync
    reach(f"{name}.after_fsync")


def replace(
    source: Path,
    target: Path,
    name: str,
    *,
    durable: bool = True,
    switch: Callable[[], None] | None = None,
) -> None:
    """Rename over `target`; `durable` also makes the rename itself survive a power cut.

    `switch` is called as soon as the name leads to the new file, whatever happens afterwards.
    """
    reach(f"{name}.before_rename")
    source.replace(target)
    if switch is not None:
        switch()
    reach(f"{name}.after_rename")
    if durable:
        sync_folder(target.parent)
        reach(f"{name}.after_folder_fsync")


def write_temp(path: Path, data: bytes, name: str) -> None:
    """A file with a fixed name, written whole and fsynced; for a `replace` under the lock."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        write_at(handle, data, 0, name)
        sync(handle, name)
    finally:
        os.close(handle)


def read_from(handle: int, offset: int) -> bytes:
    """Everything from `offset` to the end as it is now."""
    parts = []
    while chunk := os.pread(handle, 1 << 20, offset):
        parts.append(chunk)
        offset += len(chunk)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_text_from(handle: int, offset: int) -> bytes:
    """What was written from `offset` on, up to the first NUL: space that is only reserved."""
    parts, size = [], 1 << 12  # a line or two, the usual case, without a copy of what is reserved
    while chunk := os.pread(handle, size, offset):
        end = chunk.find(b"\0")
        if end >= 0:
            parts.append(chunk[:end])
            break
        parts.append(chunk)
        offset, size = offset + len(chunk), min(8 * size, 1 << 20)
    return parts[0] if len(parts) == 1 else b"".join(parts)
