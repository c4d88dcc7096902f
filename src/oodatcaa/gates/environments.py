"""Cached environments for gates: made once for each set of dependencies, watched for changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import platformdirs

from oodatcaa.kit.files import write_atomic
from oodatcaa.kit.locks import FileLock

LOCK_PATIENCE_S = 3600.0
KEPT = 4
"""Environments of one project that stay; the longest unused go first."""
UNUSED_S = 6 * 3600.0
"""Younger ones may be in use by another process."""
VARIABLE = "{env}"


@dataclass(frozen=True)
class CachedEnvironment:
    """`folder` is what {env} stands for; `key` names the setup and the dependency files."""

    key: str
    folder: Path

    @property
    def _mark(self) -> Path:
        return self.folder.with_suffix(".json")

    def is_intact(self) -> bool:
        """Whether it was completed and nothing in it changed since."""
        try:
            kept = json.loads(self._mark.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(kept, dict) and kept.get("fingerprint") == fingerprint(self.folder)

    def complete(self) -> None:
        write_atomic(self._mark, json.dumps({"fingerprint": fingerprint(self.folder)}))

    def touch(self) -> None:
        """Used now; the oldest are cleared away first."""
        os.utime(self._mark)

    def clear(self) -> None:
        self._mark.unlink(missing_ok=True)
        if self.folder.exists():
            shutil.rmtree(self.folder)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """One process at a time makes it or looks at it."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(
            self.folder.with_suffix(".lock"),
            code="gates.environment_busy",
            what=f"the gates' environment {self.key}",
        )
        with contextlib.closing(lock), lock.held(LOCK_PATIENCE_S):
            yield


def environment_for(
    root: Path,
    worktree: Path,
    setup: tuple[str, ...],
    cache_by: tuple[str, ...],
    python: str,
) -> CachedEnvironment | None:
    """The environment for the dependency files of `worktree`; None when `setup` fills none."""
    if not any(VARIABLE in command for command in setup):
        return None
    digest = hashlib.sha256()
    digest.update("\0".join((*setup, python, sys.version, sys.platform)).encode())
    for path in sorted(worktree.iterdir()):
        if path.is_file() and any(fnmatchcase(path.name, pattern) for pattern in cache_by):
            digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    key = digest.hexdigest()[:16]
    return CachedEnvironment(key, environments_folder(root) / key)


def environments_folder(root: Path) -> Path:
    project = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
    return Path(platformdirs.user_cache_dir("oodatcaa")).resolve() / "environments" / project


def clear_old(root: Path, keep: str) -> None:
    """Leave the KEPT environments that were used last, `keep` among them."""
    marks = list(environments_folder(root).glob("*.json"))
    marks.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for mark in [path for path in marks if path.stem != keep][KEPT - 1 :]:
        if time.time() - mark.stat().st_mtime < UNUSED_S:
            continue
        old = CachedEnvironment(mark.stem, mark.with_suffix(""))
        lock = FileLock(mark.with_suffix(".lock"), code="gates.environment_busy", what=mark.stem)
        with contextlib.closing(lock):
            if lock.try_acquire():
                try:
                    old.clear()
                finally:
                    lock.release()


def fingerprint(folder: Path) -> str:
    """Of names, sizes and change times (which no program can set back) of all its files.

    Bytecode caches count too: a prepared one would be run in place of the source beside it.
    """
    digest = hashlib.sha256()
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            seen = os.lstat(os.path.join(place, name))  # noqa: PTH118 - thousands of files
            line = f"{place}/{name}\0{seen.st_size}\0{seen.st_ctime_ns}\0{seen.st_mode}\n"
            digest.update(os.fsencode(line))
    return digest.hexdigest()
