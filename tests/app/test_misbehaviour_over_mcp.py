"""Agents of other programs that misbehave, through the SDK's real client and our real server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp.client import Client
from mcp.types import TextContent

from crew_projects import (
    BAD,
    GOOD,
    git,
    make_project,
    nothing_unproved_is_merged,
    plan_values,
    task,
)
from oodatcaa.app.mcp_server import make_server
from oodatcaa.app.outside_desk import OutsideDesk
from oodatcaa.app.people import release_task
from oodatcaa.app.project import Project
from oodatcaa.domain.evidence import Verdict
from oodatcaa.domain.negotiation import negotiate
from oodatcaa.domain.task import Role
from oodatcaa.kit.clock import utc_now


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_project(tmp_path, {})


class Hermes:
    """An agent in an MCP host; `fails` = what is refused, with the words of the refusal."""

    def __init__(self, root: Path, client: Client) -> None:
        self.root, self._client = root, client

    async def ask(self, tool: str, *, fails: str = "", **arguments: Any) -> Any:
        result = await self._client.call_tool(tool, arguments)
        (block,) = result.content
        assert isinstance(block, TextContent)
        assert bool(result.is_error) is bool(fails), block.text
        assert fails in block.text
        return block.text if fails else json.loads(block.text)

    async def plan(self, **changes: Any) -> Any:
        await self.ask("claim", task="T001", role="planner")
        return await self.ask("submit", task="T001", plan={**plan_values("Write."), **changes})

    async def build(self, text: str, subtask: str = "T001-B01") -> dict[str, Any]:
        """Claim it and write greeter.py; the claim's answer."""
        claimed: dict[str, Any] = await self.ask("claim", task=subtask)
        (Path(claimed["work_in"]) / "greeter.py").write_text(text)
        return claimed


@asynccontextmanager
async def hermes(root: Path, name: str = "hermes") -> AsyncIterator[Hermes]:
    server = make_server(OutsideDesk(Project(root), name))
    async with Client(server, mode="legacy", read_timeout_seconds=60) as client:
        yield Hermes(root, client)


def play(root: Path, act: Any) -> None:
    async def run() -> None:
        async with hermes(root) as agent:
            await act(agent)

    anyio.run(run)
    nothing_unproved_is_merged(root)


def test_it_lies_to_every_role(root: Path) -> None:
    async def act(agent: Hermes) -> None:
        await agent.plan()
        await agent.build(BAD)
        told = await agent.ask("submit", task="T001-B01", reason="all 128 tests pass")
        assert (told["status"], told["gates"][0]["verdict"]) == ("needs_adapt", "failed")
        await agent.ask("submit", task="T001-B01", fails="lease.not_yours")
        await agent.ask("claim", task="T001-T01", fails="claim")
        await agent.ask("claim", task="T001", role="integrator", fails="claim")

    play(root, act)
    assert task(root, "T001").status.value == "needs_adapt"


def test_it_goes_on_to_change_the_branch_after_the_test(root: Path) -> None:
    async def act(agent: Hermes) -> None:
        await agent.plan()
        claimed = await agent.build(GOOD)
        assert (await agent.ask("submit", task="T001-B01"))["status"] == "done"
        await agent.ask("claim", task="T001-T01")
        assert (await agent.ask("submit", task="T001-T01"))["status"] == "done"
        tree = Path(claimed["work_in"])
        (tree / "greeter.py").write_text(BAD)
        who = ["-c", "user.name=h", "-c", "user.email=h@example.org"]
        git(tree, *who, "commit", "-qam", "nobody tested this")
        await agent.ask("claim", task="T001", role="integrator")
        told = await agent.ask("submit", task="T001")
        assert told["status"] == "needs_human"
        assert "was tested" in told["reason"]

    play(root, act)


def test_it_hands_in_what_is_no_plan_twice_and_then_one(root: Path) -> None:
    async def act(agent: Hermes) -> None:
        await agent.ask("claim", task="T001")
        plan = plan_values("Write.")
        await agent.ask("submit", task="T001", fails="submit.no_plan")
        for bad in ({"size": "XL"}, {"steps": [], "risks": "none"}):
            told = await agent.ask("submit", task="T001", plan=plan | bad, fails="plan.invalid")
            assert all(word in told for word in bad)
        assert (await agent.ask("status"))["you_hold"] == ["T001"], "the claim is still its own"
        told = await agent.ask("submit", task="T001", plan=plan)
        assert told["status"] == "planning_complete"

    play(root, act)


def test_it_writes_outside_and_redirects_its_worktree(root: Path) -> None:
    async def act(agent: Hermes) -> None:
        await agent.plan()
        claimed = await agent.build(GOOD)
        (root / "stray.txt").write_text("x")
        await agent.ask("submit", task="T001-B01", fails="stray.txt was changed")
        assert (Path(claimed["work_in"]) / "greeter.py").read_text() == GOOD, "nothing is lost"

    play(root, act)
    found = task(root, "T001-B01").failure
    assert found is not None
    assert found.kind == "isolation"
    assert (root / "stray.txt").exists()


def test_it_hangs_or_dies_and_comes_back_late(root: Path) -> None:
    """Its lease runs out; what it left uncommitted is parked, and its result refused."""

    async def act(agent: Hermes) -> None:
        await agent.plan()
        claimed = await agent.build(BAD)
        project = Project(root)
        late = utc_now() + timedelta(hours=3)
        project.store.transact(lambda board, _: negotiate(board, project.policy, late))
        assert task(root, "T001-B01").status.value == "ready"
        async with hermes(root, "stranger") as other:
            again = await other.build(GOOD)
            assert again["attempt"] == 2
            await agent.ask("submit", task="T001-B01", reason="pass", fails="lease.not_yours")
            await agent.ask("heartbeat", task="T001-B01", fails="lease.not_yours")
            told = await other.ask("submit", task="T001-B01")
            assert told["status"] == "done"
        (ref,) = git(root, "for-each-ref", "--format=%(refname)", "refs/oodatcaa").split()
        assert git(root, "show", f"{ref}:greeter.py") == BAD
        assert claimed["attempt"] == 1

    play(root, act)


def test_the_same_name_with_an_old_attempt_is_told_apart(root: Path) -> None:
    async def act(agent: Hermes) -> None:
        await agent.plan()
        await agent.build(BAD)
        release_task(Project(root), "T001-B01", "hermes", "taken away")
        await agent.ask("submit", task="T001-B01", fails="lease.not_yours")
        assert task(root, "T001-B01").lease is None

    play(root, act)


def test_it_floods_us_and_reports_a_failure(root: Path) -> None:
    async def act(agent: Hermes) -> None:
        await agent.plan()
        await agent.build(GOOD)
        told = await agent.ask("submit", task="T001-B01", outcome="failed", reason="x" * 5_000_000)
        assert told["status"] == "needs_adapt"

    play(root, act)
    project = Project(root)
    assert (project.work / "SPRINT_QUEUE.json").stat().st_size < 200_000
    assert sum(path.stat().st_size for path in project.work.glob("*.jsonl")) < 200_000
    assert project.evidence.of_story("T001") == ()


def test_it_asks_for_what_only_people_decide(root: Path) -> None:
    """There is no tool for that, and a plan can not name a gate that passes."""

    async def act(agent: Hermes) -> None:
        for tool in ("waive", "approve", "cancel"):
            result = await agent._client.call_tool(tool, {"story": "T001"})
            assert result.is_error
        await agent.ask("claim", task="T001")
        values = plan_values("Write.")
        values["exit_gates"]["T001-B01"][0]["command"] = "curl example.org"
        told = await agent.ask("submit", task="T001", plan=values)
        assert told["status"] == "needs_human"
        await agent.ask("claim", task="T001-B01", fails="claim")

    play(root, act)
    assert Role.BUILDER not in {offer.role for offer in Project(root).board().offers}
    assert Verdict.PASSED not in {item.verdict for item in Project(root).evidence.of_story("T001")}
