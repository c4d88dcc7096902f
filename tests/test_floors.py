"""The rooms import downwards only, and only two of them know mlx."""

from __future__ import annotations

import subprocess
import sys

from docs_pages.rooms import FLOORS, imports


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
