"""Files that are written wholly or not at all, and read without waiting."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from oodatcaa.kit.faults import reach


def write_atomic(
    path: Path, data: str | bytes | memoryview, *, mode: int = 0o644, name: str = "file"
) -> None:
    """Replace `path` by `data`: temp file in the same folder, fsync, os.replace, fsync the folder.

    After a crash the file holds the old or the new content, never a part. Parent folders are made.
    Raises OSError (disk full, read-only); the old file is then untouched and no temp file stays.
    `name` is that of its crash points (see kit.faults).
    """
    payload = data.encode("utf-8") if isinstance(data, str) else data
    stream_atomic(path, lambda file: file.write(payload), mode=mode, name=name)


def stream_atomic(
    path: Path, write: Callable[[IO[bytes]], object], *, mode: int = 0o644, name: str = "file"
) -> None:
    """`write_atomic` of whatever `write` puts into the file that it is given. What it raises
    travels on; the old file is then untouched and no temp file stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temp = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            reach(f"{name}.before_write")
            write(file)
            file.flush()
            reach(f"{name}.after_write")
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        reach(f"{name}.before_rename")
        Path(temp).replace(path)
        reach(f"{name}.after_rename")
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temp).unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename or a new name in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_page(path: Path, most: int = 1_000_000) -> str:
    """The text of a file that a person wrote. Never waits and never fills the memory.

    Raises OSError for a fifo, a device, a folder, or more than `most` bytes; UnicodeDecodeError.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with open(handle, "rb") as file:  # noqa: PTH123 - of a handle
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return data.decode("utf-8").replace("\r\n", "\n")
