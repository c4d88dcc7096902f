"""The rooms of `src/oodatcaa`, their floors, and what really imports what."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

from docs_pages.tables import table
from oodatcaa.views.markdown import code, fence

SOURCE = Path(__file__).parents[2] / "src" / "oodatcaa"
FLOORS = {
    "cli": 5,
    "app": 4,
    "roles": 3,
    "runners": 2,
    "training": 2,
    "pool": 2,
    "state": 2,
    "vcs": 2,
    "gates": 2,
    "importers": 2,
    "views": 1,
    "kit": 1,
    "domain": 0,
    "errors": 0,
}
"""Imports go down only; `tests/test_floors.py` holds this."""
EVERYBODY_MAY = ("domain", "errors", "kit")


@cache
def imports() -> tuple[tuple[str, str, str], ...]:
    """(file, room, imported module) of every import statement, also inside functions."""
    found: list[tuple[str, str, str]] = []
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE)
        room = place.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            found += [(str(place), room, name) for name in names]
    return tuple(found)


def edges() -> dict[str, set[str]]:
    """room -> the other rooms it imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for _, room, name in imports():
        parts = name.split(".")
        if parts[0] == "oodatcaa" and len(parts) > 1 and room in FLOORS and parts[1] != room:
            found[room].add(parts[1])
    return found


def graph() -> str:
    """Who imports whom; `domain`, `errors` and `kit` are left out as targets, everybody may."""
    lines = ["flowchart TD"]
    for floor in sorted(set(FLOORS.values()), reverse=True):
        names = [name for name, number in FLOORS.items() if number == floor]
        lines.append(f'    subgraph floor{floor}["floor {floor}"]')
        lines += [f"        {name}" for name in names]
        lines.append("    end")
    for room, targets in sorted(edges().items(), key=lambda item: -FLOORS[item[0]]):
        lines += [f"    {room} --> {name}" for name in sorted(targets - set(EVERYBODY_MAY))]
    return fence("\n".join(lines) + "\n", "mermaid")


def table_of_rooms() -> str:
    known = edges()
    rows = [
        (
            str(floor),
            code(f"{name}/" if (SOURCE / name).is_dir() else f"{name}.py"),
            _about(name),
            ", ".join(map(code, sorted(known.get(name, ())))) or "nothing",
        )
        for name, floor in sorted(FLOORS.items(), key=lambda item: -item[1])
    ]
    return table(["Floor", "Room", "What it is", "Imports"], rows)


def _about(room: str) -> str:
    """The first paragraph of the room's docstring."""
    folder = SOURCE / room
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())
