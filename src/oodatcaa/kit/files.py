"""Files that are either wholly old or wholly new."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from oodatcaa.kit.faults import reach


def write_atomic(
    path: Path, data: str | bytes | memoryview, *, mode: int = 0o644, name: str = "file"
) -> None:
    """Replace `path` by `data`: temp file in the same folder, fsync, os.replace, fsync the folder.

    After a crash the file holds the old or the new content, never a part. Parent folders are made.
    Raises OSError (disk full, read-only); the old file is then untouched and no temp file stays.
    `name` is that of its crash points (see kit.faults).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    payload = data.encode("utf-8") if isinstance(data, str) else data
    handle, temp = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            reach(f"{name}.before_write")
            file.write(payload)
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
