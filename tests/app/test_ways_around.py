"""Ways around the framework that a lying agent could try; each one leads nowhere."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from crew_projects import (
    BAD,
    CHECK,
    GOOD,
    crew,
    git,
    make_project,
    nothing_unproved_is_merged,
    plan_values,
    task,
    work,
)
from oodatcaa.app import people
from oodatcaa.app.isolation import look, trespasses
from oodatcaa.app.outside_desk import OutsideDesk
from oodatcaa.app.project import Project
from oodatcaa.domain.task import Role
from oodatcaa.errors import OodatcaaError

LIES = {"done": "all tests pass"}
BARE = "env -u OODATCAA_AGENT_CALL -u OODATCAA_REHEARSAL -u OODATCAA_REHEARSAL_OF"
TYPE = f"{BARE} {sys.executable} -m oodatcaa"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's own settings of git."""
    for name in ("GIT_CONFIG_GLOBAL", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home/.gitconfig").write_text("[user]\nname = Ada\nemail = ada@example.org\n")
    return tmp_path / "home"


def test_a_link_to_what_is_not_in_the_commit_is_not_tested_work(tmp_path: Path) -> None:
    """What it leads to can be another thing after the merge."""
    (tmp_path / "elsewhere.py").write_text(GOOD)
    links = f"ln -s {tmp_path}/elsewhere.py far.py; ln -s ../../../../elsewhere.py up.py"
    root = crew(
        tmp_path,
        [
            {"run": f"{links}; ln -s greeter.py fine.py"},
            {"write": "greeter.py", "text": GOOD},
            LIES,
        ],
    )
    work(root, rounds=1)
    found = task(root, "T001-T01").failure
    assert found is not None
    assert found.summary.startswith("the tester vetoes: far.py leads out of the repository: /")
    assert len(found.gates) == 2, found.gates
    assert "far.py" not in git(root, "ls-tree", "--name-only", "main")


def test_a_filter_in_a_persons_own_git_settings_shows_gates_no_other_code(
    tmp_path: Path, home: Path
) -> None:
    """The blob is bad, every checkout of it good."""
    good = tmp_path / "good.py"
    good.write_text(GOOD)
    sets = "git config --global filter.x"
    root = crew(
        tmp_path,
        [{"run": f"{sets}.smudge 'cat {good}'; {sets}.clean cat"},
         {"write": ".gitattributes", "text": "greeter.py filter=x\n"},
         {"write": "greeter.py", "text": BAD}, LIES],
    )  # fmt: skip
    work(root, rounds=1)
    found = task(root, "T001-B01").failure
    assert found is not None
    assert "~/.gitconfig was changed" in found.summary
    nothing_unproved_is_merged(root)
    assert "filter" in (home / ".gitconfig").read_text(), "nothing is put back"


def test_a_replaced_object_is_not_what_gates_look_at(tmp_path: Path) -> None:
    root = make_project(tmp_path, {})
    project = Project(root)
    bad = git(root, "rev-parse", "HEAD").strip()
    (root / "greeter.py").write_text(GOOD)
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    git(root, *who, "commit", "-qam", "good")
    good = git(root, "rev-parse", "HEAD").strip()
    before = look(project, "T001", 1)
    git(root, "replace", bad, good)
    assert git(root, "show", f"{bad}:greeter.py") == GOOD, "plain git is fooled"
    assert GOOD.encode() != project.repo.file_at(bad, "greeter.py")
    with project.repo.check_worktree(bad, "x") as place:
        assert (place / "greeter.py").read_text() != GOOD
    assert any("refs/replace/" in line for line in trespasses(project, before))


def test_the_history_is_only_added_to(tmp_path: Path) -> None:
    root = make_project(tmp_path, {})
    project = Project(root)
    before = look(project, "T001", 1)
    project.store.flush()
    people.claim_task(project, "T001", Role.PLANNER, "hermes")
    assert trespasses(project, before) == ()
    changed = before.evolve(history=before.history.replace(before.history[-4:], "beef"))
    assert trespasses(project, changed) == ("entries of the history were changed",)


def outside(root: Path) -> OutsideDesk:
    return OutsideDesk(Project(root), "hermes")


def submit(desk: OutsideDesk, name: str, **more: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"outcome": "done", "reason": "", "plan": None, **more}
    return desk.submit(name, values["outcome"], values["reason"], values["plan"], lambda _: None)


@pytest.mark.parametrize("how", ["done", "failed", "release"])
def test_an_outside_planner_is_held_to_its_place_too(tmp_path: Path, how: str) -> None:
    root = make_project(tmp_path, {})
    desk = outside(root)
    desk.claim("T001", Role.PLANNER)
    (root / "greeter.py").write_text(BAD)
    with pytest.raises(OodatcaaError, match=r"greeter\.py was changed"):
        submit(desk, "T001", outcome=how, plan=plan_values("x") if how == "done" else None)
    story = task(root, "T001")
    assert (story.status.value, story.lease) == ("needs_human", None)
    assert story.failure is not None
    assert story.failure.kind == "isolation"


@pytest.mark.parametrize("how", ["failed", "release"])
def test_who_wrote_outside_can_not_walk_away_from_it(tmp_path: Path, how: str) -> None:
    root = make_project(tmp_path, {})
    desk = outside(root)
    desk.claim("T001", Role.PLANNER)
    submit(desk, "T001", plan=plan_values("x"))
    desk.claim("T001-B01", None)
    (root / "stray.txt").write_text("x")
    desk.claim("T001-B01", None)  # a second claim is the same attempt, and no new look
    with pytest.raises(OodatcaaError, match=r"stray\.txt was changed"):
        submit(desk, "T001-B01", outcome=how)
    found = task(root, "T001-B01")
    assert found.failure is not None
    assert (found.status.value, found.failure.kind) == ("needs_adapt", "isolation")


def test_an_agents_child_hands_in_and_releases_nothing_under_its_agents_name(
    tmp_path: Path,
) -> None:
    """Its own submission would be judged without the look at what the agent wrote elsewhere."""
    said = tmp_path / "said"
    stray = tmp_path / "project/stray.txt"
    lines = [f"{TYPE} {verb} T001-B01 --as builder-s-A >> {said} 2>&1" for verb in
             ("submit", "release")]  # fmt: skip
    root = crew(
        tmp_path,
        [{"append": str(stray), "text": "x"}, {"write": "greeter.py", "text": GOOD},
         {"run": "git add -A; git -c user.name=a -c user.email=a@b.c commit -qm x"},
         *({"run": line} for line in lines), LIES],
        [{"write": "greeter.py", "text": GOOD}, LIES],
    )  # fmt: skip
    assert work(root) == "done", said.read_text()
    text = said.read_text()
    assert text.count("is held by a process") == 1, text
    assert "only a person can release" in text
    first = task(root, "T001-B01")
    assert first.failure is not None
    assert first.failure.kind == "isolation"
    nothing_unproved_is_merged(root)
    assert CHECK in git(root, "show", "HEAD:.oodatcaa/config.toml").replace('\\"', '"')
    assert os.path.exists(stray)  # noqa: PTH110
