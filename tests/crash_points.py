"""The crash points that the source of the store has, found by reading it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import oodatcaa

STATE = Path(oodatcaa.__file__).parent / "state"

WRITE = ("before_write", "half_written", "after_write")
SYNC = ("before_fsync", "after_fsync")
RENAME = ("before_rename", "after_rename")
ATOMIC = ("before_write", "after_write", *RENAME)


def points_in_source() -> set[str]:
    """Every name that `kit.faults.reach` is called with on behalf of the queue's files."""
    return {
        point
        for path in sorted(STATE.glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        for point in _points(node, path.name)
    }


def _points(call: ast.Call, file: str) -> Iterator[str]:
    name = call.func.id if isinstance(call.func, ast.Name) else ""
    if isinstance(call.func, ast.Attribute) and call.func.attr == "_append":
        name = "_append"
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    words = [one.value for one in given if isinstance(one, ast.Constant)]
    label = next((word for word in words if isinstance(word, str)), None)
    if label is None:
        return
    if name == "reach":
        yield label
    elif name == "write_at":
        yield from (f"{label}.{point}" for point in WRITE)
    elif name in ("sync", "sync_data"):
        yield from (f"{label}.{point}" for point in SYNC)
    elif name == "write_temp":
        yield from (f"{label}.{point}" for point in (*WRITE, *SYNC))
    elif name == "replace" and file != "disk.py":
        durable = not any(keyword.arg == "durable" for keyword in call.keywords)
        yield from (f"{label}.{point}" for point in RENAME)
        if durable:
            yield f"{label}.after_folder_fsync"
    elif name == "_append":  # the journal's own: its fsync is asked for with durable=True
        yield from (f"{label}.{point}" for point in WRITE)
        if True in words:
            yield from (f"{label}.{point}" for point in SYNC)
    elif name == "write_atomic":
        yield from (f"{label}.{point}" for point in ATOMIC)
