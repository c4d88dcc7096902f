"""The torture's list of crash points is exactly what the source has."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from crash_points import STATE, points_in_source

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_torture_knows_every_crash_point_of_the_source() -> None:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from victims import POINTS  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(BENCHMARKS))
    found = points_in_source()
    assert len(found) > 60, "the search finds nothing any more"
    assert set(POINTS) == found


def test_no_write_of_the_store_goes_past_the_crash_points() -> None:
    """A plain write, fsync or rename in the store would be one that no test can interrupt."""
    past = {"write_text", "write_bytes", "pwrite", "fsync", "rename", "copy2", "copyfile", "link"}
    bare = [
        f"{path.name}:{node.lineno} {node.func.attr}"
        for path in sorted(STATE.glob("*.py"))
        if path.name != "disk.py"  # the points' home
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        if node.func.attr in past
    ]
    assert bare == []
