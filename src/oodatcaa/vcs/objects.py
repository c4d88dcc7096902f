"""Read commits' contents through GitPython's object database."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from oodatcaa.vcs.git import run_git
from oodatcaa.vcs.records import Count, TreeInventory

if TYPE_CHECKING:
    from git.db import GitCmdObjectDB

LANGUAGES = {
    ".py": "Python",
    ".pyi": "Python",
    ".ipynb": "Jupyter notebook",
    ".md": "Markdown",
    ".rst": "reStructuredText",
    ".txt": "text",
    ".toml": "TOML",
    ".yaml": "YAML",
    ".yml": "YAML",
    ".json": "JSON",
    ".jsonl": "JSON lines",
    ".sh": "shell",
    ".c": "C",
    ".h": "C",
    ".cc": "C++",
    ".cpp": "C++",
    ".hpp": "C++",
    ".cu": "CUDA",
    ".metal": "Metal",
    ".rs": "Rust",
    ".go": "Go",
    ".java": "Java",
    ".js": "JavaScript",
    ".ts": "TypeScript",
    ".tsx": "TypeScript",
    ".swift": "Swift",
    ".html": "HTML",
    ".css": "CSS",
    ".sql": "SQL",
}
DOCUMENTS = frozenset({".md", ".rst", ".txt"})
COUNTED_BYTES = 1_000_000
"""Larger files are data, not text that somebody reads: they are counted without lines."""


@contextlib.contextmanager
def object_database(root: Path, common: Path) -> Iterator[GitCmdObjectDB]:
    """GitPython's reader (one `git cat-file --batch` for many objects), closed afterwards."""
    # Imported here: it costs a tenth of a second that `--help` should not pay; and its own check
    # for the git program at import would hide our error for a missing git.
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    # The package first: another thread may still be at its import, at whose end it looks for the
    # program, and only the name of the package itself waits for that.
    import git
    from git.db import GitCmdObjectDB

    reader = git.Git(str(root))
    # GitPython hands the whole environment down; these outvote what a calling hook left there.
    reader.update_environment(
        GIT_DIR=str(common),
        GIT_OBJECT_DIRECTORY=str(common / "objects"),
        GIT_NO_REPLACE_OBJECTS="1",
    )
    try:
        yield GitCmdObjectDB(str(common / "objects"), reader)
    finally:
        reader.clear_cache()


def file_at(root: Path, common: Path, sha: str, path: str) -> bytes | None:
    """The file's content at the commit, or None (also for folders and submodules)."""
    listed = run_git(root, ["ls-tree", "-z", sha, "--", path]).fields()
    for entry in listed:
        facts, name = entry.split("\t", 1)
        _, kind, blob = facts.split()
        if name == path and kind == "blob":
            with object_database(root, common) as database:
                return cast(bytes, database.stream(bytes.fromhex(blob)).read())
    return None


def paths_at(root: Path, sha: str) -> tuple[str, ...]:
    """Every tracked path at the commit."""
    return run_git(root, ["ls-tree", "-r", "-z", "--name-only", sha]).fields()


def links_out(root: Path, common: Path, sha: str, paths: Collection[str]) -> dict[str, str]:
    """Those of `paths` at the commit that are symbolic links to a place outside of the repository
    (or to its live state), and where they lead to."""
    wanted, found = frozenset(paths), {}
    links = []
    for entry in run_git(root, ["ls-tree", "-r", "-z", sha]).fields():
        facts, path = entry.split("\t", 1)
        if facts.startswith("120000 ") and path in wanted:
            links.append((path, facts.split()[2]))
    if links:
        with object_database(root, common) as database:
            for path, blob in links:
                data = cast(bytes, database.stream(bytes.fromhex(blob)).read())
                target = data.decode("utf-8", "replace")
                place = os.path.normpath(os.path.join(os.path.dirname(path), target))  # noqa: PTH118, PTH120 - text only, no file is looked at
                if place.startswith(("/", "..", ".git/", ".oodatcaa/work")) or place == ".git":
                    found[path] = target
    return found


def sizes_at(root: Path, sha: str) -> dict[str, int]:
    """Every tracked file at the commit with its size in bytes."""
    return {path: size for path, _, size in _entries(root, sha)}


def _entries(root: Path, sha: str) -> Iterator[tuple[str, str, int]]:
    for entry in run_git(root, ["ls-tree", "-r", "-z", "-l", sha]).fields():
        facts, path = entry.split("\t", 1)
        _, kind, blob, size = facts.split()
        if kind == "blob":
            yield path, blob, int(size)


def take_inventory(root: Path, common: Path, sha: str) -> TreeInventory:
    """Count what the commit holds. Lines are newline characters of files that are text."""
    rows: list[tuple[str, int]] = []
    with object_database(root, common) as database:
        for path, blob, size in _entries(root, sha):
            lines = 0
            if 0 < size <= COUNTED_BYTES:
                data = cast(bytes, database.stream(bytes.fromhex(blob)).read())
                lines = 0 if b"\0" in data[:8000] else len(data.splitlines())
            rows.append((path, lines))
    return TreeInventory(
        commit=sha,
        total=_count("all", rows),
        folders=_group(rows, _top),
        languages=_group(rows, _language),
        tests=_count("tests", [row for row in rows if _is_test(row[0])]),
        docs=_count("docs", [row for row in rows if _is_document(row[0])]),
        packages=_packages([path for path, _ in rows]),
    )


def _count(name: str, rows: list[tuple[str, int]]) -> Count:
    return Count(name=name, files=len(rows), lines=sum(lines for _, lines in rows))


def _group(rows: list[tuple[str, int]], key: Callable[[str], str]) -> tuple[Count, ...]:
    groups: dict[str, list[tuple[str, int]]] = {}
    for row in rows:
        groups.setdefault(key(row[0]), []).append(row)
    counts = [_count(name, members) for name, members in groups.items()]
    return tuple(sorted(counts, key=lambda count: (-count.lines, -count.files, count.name)))


def _top(path: str) -> str:
    head, slash, _ = path.partition("/")
    return f"{head}/" if slash else "(top)"


def _language(path: str) -> str:
    return LANGUAGES.get(Path(path).suffix.lower(), Path(path).suffix.lower() or "other")


def _is_test(path: str) -> bool:
    parts = Path(path).parts
    name = parts[-1]
    return (
        any(part in ("test", "tests") for part in parts[:-1])
        or name.startswith("test_")
        or Path(name).stem.endswith("_test")
    )


def _is_document(path: str) -> bool:
    in_docs = Path(path).parts[0] in ("docs", "doc")
    return in_docs or Path(path).suffix.lower() in DOCUMENTS


def _packages(paths: list[str]) -> tuple[str, ...]:
    found = set()
    for path in paths:
        parts = Path(path).parts
        if parts[0] == "src":
            parts = parts[1:]
        if len(parts) == 2 and parts[1] == "__init__.py" and parts[0] not in ("tests", "test"):
            found.add(parts[0])
    return tuple(sorted(found))
