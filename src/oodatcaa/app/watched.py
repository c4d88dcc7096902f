"""What isolation looks at: the main checkout, other worktrees, git's settings, the crew's records.

A look is bounded: only regular files are read, and large ones are known by their stamp. A fifo in
a watched folder would otherwise keep a reader waiting for ever.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from oodatcaa.app.project import Project

SETTINGS = ("config", "config.worktree", "hooks/**/*", "info/*")
CREW_FILES = ("OBJECTIVE.md", ".oodatcaa/config.toml", "agents/*.md")
RECORDS = (
    "evidence/*/*.json",
    "plans/*/plan-v*[0-9].json",
    "facts/*/*.json",
    "baselines/*.json",
    "agents/sprint-*/*/call.json",
)
READ_BYTES = 10_000_000
"""A larger file is known by its size and change time, which no program can set back."""


def changes(project: Project, checkout: Path) -> dict[str, str]:
    """Changed path of a checkout -> what is there."""
    found = project.repo.dirty_paths(checkout, hidden=True)
    return {path: content(checkout / path) for path in found}


def worktrees(project: Project, own: str) -> dict[str, str]:
    """Other story -> a hash of what is changed in its worktree."""
    found = {}
    for story, path in project.repo.story_worktrees().items():
        if story != own:
            text = "\n".join(f"{name} {sha}" for name, sha in changes(project, path).items())
            found[story] = hashlib.sha256(text.encode()).hexdigest()
    return found


def own_settings() -> dict[str, Path]:
    """A person's own settings of git: a filter in them could show checks other code than what is
    committed."""
    home = Path.home()
    more = os.environ.get("XDG_CONFIG_HOME", "")
    folder = (Path(more) if more else home / ".config") / "git"
    named = os.environ.get("GIT_CONFIG_GLOBAL", "")
    found = {"~/.gitconfig": Path(named) if named else home / ".gitconfig"}
    return found | {f"~/.config/git/{name}": folder / name for name in ("config", "attributes")}


def files(project: Project) -> dict[str, str]:
    """Settings, the crew's definitions, and every record that the framework relies on."""
    found = {}
    for pattern in CREW_FILES:
        for path in project.root.glob(pattern):
            found[str(path.relative_to(project.root))] = content(path)
    for pattern in SETTINGS:
        for path in project.repo.common_dir.glob(pattern):
            found[f".git/{path.relative_to(project.repo.common_dir)}"] = content(path)
    found |= {name: content(path) for name, path in own_settings().items() if path.is_file()}
    for pattern in RECORDS:
        for path in project.work.glob(pattern):
            found[str(path.relative_to(project.work))] = stamp(path)
            # An output without its record is still being written.
            output = path.with_suffix(".txt")
            if pattern.startswith("evidence") and output.exists():
                found[str(output.relative_to(project.work))] = stamp(output)
    return found


def content(path: Path) -> str:
    """What is there: a hash of a regular file, else its kind. Never waits for a writer."""
    try:
        seen = os.lstat(path)
        if stat.S_ISLNK(seen.st_mode):
            return f"-> {path.readlink()}"
        if stat.S_ISDIR(seen.st_mode):
            return "folder"
        if not stat.S_ISREG(seen.st_mode):
            return f"no regular file ({stat.filemode(seen.st_mode)[0]}{seen.st_rdev})"
        if seen.st_size > READ_BYTES:
            return stamp(path)
        # It may have become a fifo or a link since.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        with os.fdopen(handle, "rb") as file:
            return hashlib.sha256(file.read(READ_BYTES + 1)).hexdigest()
    except OSError:
        return "gone"


def stamp(path: Path) -> str:
    """Size, change time and inode; the files may be large."""
    try:
        seen = os.lstat(path)
    except OSError:
        return "gone"
    return f"{seen.st_size} {seen.st_ctime_ns} {seen.st_ino}"
