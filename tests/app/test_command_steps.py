"""A plan's command steps: they end when the crew stops, and within their limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent_making import script
from crew_projects import CHECK, GOOD, git, make_project, plan_values, task, work
from oodatcaa.app.agent import Mode, run_agent
from oodatcaa.app.project import Project
from oodatcaa.domain.task import Role


def project(tmp_path: Path, line: str, **config: Any) -> Path:
    """Its only story has one step: this command."""
    values = plan_values("Write greet().")
    values["steps"][0] |= {"kind": "command", "command": line}
    planner = script(tmp_path / "planner.json", [{"done": json.dumps(values)}])
    return make_project(
        tmp_path,
        {"planner-s": {"role": "planner", "script": planner}},
        config={"imports": {"allow": [CHECK, line]}, **config},
    )


def test_what_a_command_changed_is_committed_and_checked(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(GOOD)
    root = project(tmp_path, f"cp {tmp_path}/good.py greeter.py")
    assert work(root) == "done"
    assert git(root, "show", "main:greeter.py") == GOOD


@pytest.mark.parametrize(
    ("line", "limits", "kind"),
    [
        ("python3 -c 'held = bytearray(600_000_000)'", {"memory_bytes": 200_000_000}, "memory"),
        ("python3 -c 'while True: pass'", {"cpu_seconds": 1}, "command"),
        ("head -c 3000000 /dev/zero > big", {"file_bytes": 1_000_000}, "command"),
    ],
    ids=["memory", "cpu", "file"],
)
def test_a_command_beyond_its_limits_fails_by_name(
    tmp_path: Path, line: str, limits: dict[str, Any], kind: str
) -> None:
    root = project(tmp_path, line, gates={"limits": limits})
    work(root, rounds=1)
    failures = [item.failure for item in Project(root).board().subtasks if item.failure]
    assert [item.kind for item in failures][:1] == [kind], failures
    assert git(root, "tag") == ""


def test_a_command_ends_with_the_crew_and_is_given_back(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    root = project(tmp_path, f"sleep 300 & echo half > half; echo $$ > {note}; wait")
    for role, name in ((Role.PLANNER, "planner-s-A"), (Role.BUILDER, "builder-A")):
        run_agent(
            Project(root),
            role,
            name,
            mode=Mode.ONCE,
            echo=lambda _: None,
            should_stop=lambda: note.exists() and bool(note.read_text()),
        )
    assert not psutil.pid_exists(int(note.read_text()))
    held = task(root, "T001-B01")
    assert (held.status.value, held.lease) == ("ready", None)
    assert (root / ".oodatcaa/worktrees/T001/half").exists(), "nothing is lost"
