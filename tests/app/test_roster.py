"""Who fills which role: agents/*.md and [runners], every problem at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from oodatcaa.app.roster import Roster, load_roster
from oodatcaa.app.templates import ROLES, role_text
from oodatcaa.domain.task import Role
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.config import Config

CLAUDE = """\
---
name: builder-claude
description: Use this agent when: a step needs code.
role: builder
runner: claude
model: sonnet
tools: Read, Edit, Bash(git diff:*)
limits:
  minutes: 20
  tokens: 200000
---

You build.
"""


def roster(root: Path, files: dict[str, str], **config: Any) -> Roster:
    (root / "agents").mkdir(exist_ok=True)
    for name, text in files.items():
        (root / "agents" / name).write_text(text, encoding="utf-8")
    return load_roster(root, Config.model_validate(config))


def problems(root: Path, files: dict[str, str], **config: Any) -> list[str]:
    with pytest.raises(OodatcaaError) as caught:
        roster(root, files, **config)
    assert caught.value.code == "agents.invalid"
    return list(caught.value.details)


def test_without_files_every_role_is_built_in(tmp_path: Path) -> None:
    found = load_roster(tmp_path, Config())
    assert all(found.acting(role, f"{role.value}-A").builtin for role in Role)
    assert found.external(Role.BUILDER, "builder-A") is None


def test_what_init_writes_is_valid(tmp_path: Path) -> None:
    found = roster(tmp_path, {f"{role}.md": role_text(role) for role in ROLES})
    assert len(found.definitions) == 5
    assert found.acting(Role.PLANNER, "planner-A").prompt.startswith("# Planner")


def test_the_convention_of_claude_agents_is_read(tmp_path: Path) -> None:
    found = roster(tmp_path, {"builder.md": role_text("builder"), "builder-claude.md": CLAUDE})
    claude = found.acting(Role.BUILDER, "builder-claude-A")
    assert (claude.name, claude.runner, claude.model) == ("builder-claude", "claude", "sonnet")
    assert claude.description == "Use this agent when: a step needs code."
    assert claude.tools == ("Read", "Edit", "Bash(git diff:*)")
    assert (claude.limits.minutes, claude.limits.tokens) == (20, 200_000)
    assert found.acting(Role.BUILDER, "builder-A").name == "builder"
    assert [item.name for item in found.of_role(Role.BUILDER)] == ["builder", "builder-claude"]
    for acting in ("builder-A", "builder-claude-A"):
        external = found.external(Role.BUILDER, acting)
        assert external is not None
        assert external.name == "builder-claude"
    assert found.external(Role.BUILDER, "builder-A", "nobody") is None


def test_every_problem_of_every_file_is_told_at_once(tmp_path: Path) -> None:
    files = {
        "a.md": "no front matter",
        "b.md": CLAUDE.replace("runner: claude", "runner: clod").replace("-claude", "-b"),
        "c.md": CLAUDE.replace("role: builder", "role: boss\nmood: good").replace("-claude", "-c"),
        "d.md": CLAUDE.replace("-claude", "-d"),
        "e.md": CLAUDE.replace("-claude", "-d"),
        "f.md": CLAUDE.replace("role: builder", "role: integrator").replace("-claude", "-f"),
        "g.md": "---\nname: [\n---\n",
        "h.md": CLAUDE.replace("runner: claude", "runner: cheap").replace("-claude", "-h"),
        "i.md": CLAUDE.replace("runner: claude", "runner: local").replace("-claude", "-i"),
        "j.md": CLAUDE.replace("runner: claude", "runner: aider").replace("-claude", "-j"),
    }
    runners = {
        "cheap": {"preset": "codex", "typo": 1},
        "local": {"kind": "openai", "base_url": "http://127.0.0.1:1/v1"},
        "odd": {"kind": "telepathy"},
        "builtin": {"preset": "codex"},
    }
    found = problems(tmp_path, files, runners=runners)
    text = "\n".join(found)
    for expected in (
        "agents/a.md: no YAML front matter",
        "agents/b.md: runner: unknown 'clod'",
        "agents/c.md: role: ",
        "agents/c.md: mood: unknown key",
        "agents/e.md: name: 'builder-d' is taken by agents/d.md",
        "agents/f.md: runner: only the framework integrates",
        "agents/g.md: the front matter is not YAML",
        "config.toml: runners.cheap.typo: unknown key",
        "agents/h.md: runner: unknown 'cheap'",
        "agents/i.md: runner: kind openai returns records",
        "agents/j.md: limits: there is a token budget, but this agent does not report its tokens",
        "config.toml: runners.odd.kind: unknown 'telepathy'",
        "config.toml: runners.builtin: this name means the built-in role",
    ):
        assert expected in text
    assert len(found) == 13


def test_a_cost_budget_needs_a_cost(tmp_path: Path) -> None:
    codex = {"builder-x.md": CLAUDE.replace("runner: claude", "runner: codex")}
    budgets = {"sprint": {"cost_usd": 5}}
    assert "no prices" in problems(tmp_path, codex, budgets=budgets)[0]
    priced = {"codex": {"preset": "codex", "prices": {"input": 1, "output": 8}}}
    assert roster(tmp_path, codex, budgets=budgets, runners=priced).definitions
