"""The rooms import downwards only, and only two of them know mlx."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "oodatcaa"
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


def imports() -> list[tuple[str, str, str]]:
    """(file, room, imported module) of every import statement, also inside functions."""
    found = []
    for path in SOURCE.rglob("*.py"):
        place = path.relative_to(SOURCE)
        room = place.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            found += [(str(place), room, name) for name in names]
    return found


def test_every_room_is_looked_at() -> None:
    rooms = {room for _, room, _ in imports()} - {"__init__", "__main__"}
    assert set(FLOORS) - {"errors"} <= rooms
    assert rooms <= set(FLOORS)
    assert len(imports()) > 500


def test_imports_go_down_only() -> None:
    wrong = []
    for place, room, name in imports():
        parts = name.split(".")
        if parts[0] != "oodatcaa" or len(parts) < 2 or room not in FLOORS:
            continue
        target = parts[1]
        allowed = target == room or FLOORS[target] < FLOORS[room]
        if room in ("views", "kit"):
            allowed = target in (room, "domain", "errors")
        if room == "domain":
            allowed = target in ("domain", "errors")
        if not allowed:
            wrong.append(f"{place} imports {name}")
    assert wrong == []


def test_only_two_rooms_know_mlx() -> None:
    wrong = [
        place
        for place, _, name in imports()
        if name.split(".")[0] in ("mlx", "mlx_lm")
        and not place.startswith(("training/mlx/", "pool/mlx/"))
    ]
    assert wrong == []


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nsys.argv = ['oodatcaa', '--help']\n"
        "from oodatcaa.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0, end.code\n"
        "heavy = {'mlx', 'mlx_lm', 'git', 'jsonschema', 'rich', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "negotiate" in done.stdout
