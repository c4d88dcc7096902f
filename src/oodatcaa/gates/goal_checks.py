"""Artifacts and key links, looked at in the commit itself by a child that is bounded."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

from oodatcaa.domain.evidence import GateKind, GateSpec
from oodatcaa.gates.judging import Judgement, crashed, failed, not_run, passed
from oodatcaa.kit.process import Limits, run_command

INSPECTOR = Path(__file__).with_name("_inspect.py")
SECONDS = 10.0
MAX_BYTES = 4_000_000
MAX_FILES = 200
MAX_PATTERN = 2_000
_LIMITS = Limits(memory_bytes=1_000_000_000, cpu_seconds=20)


class Commits(Protocol):
    """What is asked of the repository."""

    def sizes_at(self, commit: str) -> dict[str, int]: ...

    def file_at(self, commit: str, path: str) -> bytes | None: ...


def check_goal(
    gate: GateSpec, commit: str, commits: Commits, should_stop: Callable[[], bool] | None = None
) -> Judgement:
    """An artifact or key link gate at `commit`. Nothing of the checked code is run.

    What can not be decided (no such pattern, too large, not in time) is crashed, never passed.
    """
    if gate.kind is GateKind.ARTIFACT:
        return _artifact(gate, commit, commits, should_stop)
    return _link(gate, commit, commits, should_stop)


def _artifact(
    gate: GateSpec, commit: str, commits: Commits, should_stop: Callable[[], bool] | None
) -> Judgement:
    check = gate.artifact
    if check is None:
        return crashed("the gate names no artifact")
    sizes = commits.sizes_at(commit)
    path = check.path.removeprefix("./").rstrip("/")
    inside = [name for name in sizes if name.startswith(path + "/")]
    if path not in sizes and inside and not (check.exports or check.contains or check.min_lines):
        return passed(f"{path}/ holds {len(inside)} files")
    if path not in sizes:
        return failed(f"{path} is {'a folder' if inside else 'missing'}")
    if sizes[path] == 0:
        return failed(f"{path} is empty")
    if sizes[path] > MAX_BYTES:
        return crashed(f"{path} has {sizes[path]} bytes; files up to {MAX_BYTES} are looked into")
    request = {
        "kind": "artifact",
        "check": check.model_dump(),
        "python": path.endswith((".py", ".pyi")),
    }
    found = _inspect(request, {path: commits.file_at(commit, path) or b""}, should_stop)
    if isinstance(found, Judgement):
        return found
    if found:
        return failed(f"{path}: " + "; ".join(found))
    return passed(f"{path} is there: {_what(check.min_lines, check.contains, check.exports)}")


def _what(lines: int, contains: tuple[str, ...], exports: tuple[str, ...]) -> str:
    parts = [
        f"at least {lines} lines" if lines else "",
        f"{len(contains)} texts found" if contains else "",
        f"defines {', '.join(exports)}" if exports else "",
    ]
    return ", ".join(part for part in parts if part) or "not empty"


def _link(
    gate: GateSpec, commit: str, commits: Commits, should_stop: Callable[[], bool] | None
) -> Judgement:
    check = gate.link
    if check is None:
        return crashed("the gate names no link")
    if len(check.pattern) > MAX_PATTERN:
        return crashed(f"the pattern is longer than {MAX_PATTERN} characters")
    sizes = commits.sizes_at(commit)
    source = check.source.removeprefix("./").rstrip("/")
    names = [
        name
        for name in sizes
        if name == source or name.startswith(source + "/") or fnmatchcase(name, source)
    ]
    if not names:
        return failed(f"{source} is missing")
    total = sum(sizes[name] for name in names)
    if len(names) > MAX_FILES or total > MAX_BYTES:
        return crashed(
            f"{source} has {len(names)} files and {total} bytes; up to {MAX_FILES} files and "
            f"{MAX_BYTES} bytes are searched"
        )
    files = {name: commits.file_at(commit, name) or b"" for name in names}
    found = _inspect({"kind": "link", "check": check.model_dump()}, files, should_stop)
    if isinstance(found, Judgement):
        return found
    if found:
        return failed(f"{source} -> {check.target}: " + "; ".join(found))
    return passed(f"{source} -> {check.target}: found")


def _inspect(
    request: dict[str, object], files: dict[str, bytes], should_stop: Callable[[], bool] | None
) -> list[str] | Judgement:
    """What is wrong, or the verdict when it could not be looked at."""
    with tempfile.TemporaryDirectory(prefix="oodatcaa-look-") as name:
        folder = Path(name)
        places = []
        for number, data in enumerate(files.values()):
            place = folder / f"{number}.txt"
            place.write_bytes(data)
            places.append(str(place))
        asked = folder / "request.json"
        asked.write_text(json.dumps({**request, "files": places}), encoding="utf-8")
        result = run_command(
            [sys.executable, "-I", "-S", str(INSPECTOR), str(asked)],
            cwd=folder,
            timeout=SECONDS,
            grace=0.2,
            limits=_LIMITS,
            should_stop=should_stop,
        )
    if result.stopped:
        return not_run("stopped before it ended")
    if result.timed_out:
        return crashed(f"the search did not end within {SECONDS:g} s; is the pattern too greedy?")
    try:
        answer = json.loads(result.tail.strip().splitlines()[-1]) if result.ok else None
    except (ValueError, IndexError):
        answer = None
    if isinstance(answer, dict):
        return crashed(str(answer.get("crashed")))
    if not isinstance(answer, list):
        return crashed(f"looking into the files ended with {result.exit_code}", result.tail[-200:])
    return [str(item) for item in answer]
