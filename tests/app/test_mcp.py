"""An agent in another program works the queue, through the SDK's own client over stdio."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import StdioServerParameters
from mcp.client import Client
from mcp.types import TextContent

from crew_boards import GATE, plan_for
from oodatcaa.app.project import Project
from real_project import gated, git, make_project, type_command

MAX_TOKENS = 2_000
BLOCKED = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "mcp" or name.startswith("mcp."):
            raise ModuleNotFoundError("No module named 'mcp'", name="mcp")
sys.meta_path.insert(0, Missing())
sys.argv = ["oodatcaa", "mcp"]
from oodatcaa.cli.main import main
main()
"""


ALLOWED = ["true", "grep -q", "test -f"]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = make_project(tmp_path / "project")
    config = made.root / ".oodatcaa/config.toml"
    config.write_text(f"{config.read_text()}\n[imports]\nallow = {json.dumps(ALLOWED)}\n")
    git(made.root, "commit", "-qam", "what plans may run")
    return Project(made.root)


@asynccontextmanager
async def connected(project: Project, name: str = "hermes") -> AsyncIterator[Client]:
    server = StdioServerParameters(
        command=sys.executable,
        args=["-m", "oodatcaa", "mcp", "--as", name, "--project", str(project.root)],
        cwd=str(project.root.parent),
    )
    async with Client(server, read_timeout_seconds=120) as client:
        yield client


async def ask(client: Client, tool: str, *, fails: bool = False, **arguments: Any) -> Any:
    result = await client.call_tool(tool, arguments)
    (block,) = result.content
    assert isinstance(block, TextContent)
    assert bool(result.is_error) is fails, block.text
    return block.text if fails else json.loads(block.text)


def the_plan(project: Project) -> dict[str, Any]:
    made = gated(plan_for(project.board().story_by_id["T001"]))
    story = project.board().story_by_id["T001"]
    made = made.evolve(created_at=datetime.now(UTC), kind=story.kind, goal=story.goal or "shoes")
    gate = GATE.evolve(command="grep -q wings notes/shoes.txt")
    tests = made.test_plan.evolve(acceptance=(gate.evolve(id="AC1"),))
    made = made.evolve(exit_gates={"T001-B01": (gate,)}, test_plan=tests)
    record: dict[str, Any] = made.model_dump(mode="json")
    return record


def test_an_agent_works_the_queue_from_claim_to_submit(project: Project) -> None:
    async def work() -> None:
        async with connected(project) as client:
            tools = (await client.list_tools()).tools
            assert {tool.name for tool in tools} == {
                "status", "next", "claim", "heartbeat", "submit", "evidence", "plan", "log",
            }  # fmt: skip
            offers = (await ask(client, "next"))["offers"]
            assert offers[0]["task"] == "T001"
            claimed = await ask(client, "claim", task="T001")
            assert (claimed["role"], claimed["attempt"]) == ("planner", 1)
            assert "steps" in (await ask(client, "plan", schema=True))["properties"]
            record = the_plan(project)
            bad = await ask(client, "submit", task="T001", plan={**record, "steps": []}, fails=True)
            assert "plan.invalid" in bad
            assert "steps" in bad
            done = await ask(client, "submit", task="T001", plan=record)
            assert done["status"] == "planning_complete"

            build = await ask(client, "claim", role="builder")
            assert build["task"] == "T001-B01"
            assert any("grep -q wings" in line for line in build["exit_gates"])
            assert (await ask(client, "heartbeat", task="T001-B01"))["heartbeat_within_minutes"] > 0
            assert (await ask(client, "status"))["you_hold"] == ["T001-B01"]
            place = Path(build["work_in"]) / "notes/shoes.txt"
            place.parent.mkdir(exist_ok=True)
            place.write_text("shoes with wings\n")
            told: list[str | None] = []

            async def progress(progress: float, total: float | None, message: str | None) -> None:
                assert progress > 0
                assert total is None
                told.append(message)

            result = await client.call_tool(
                "submit", {"task": "T001-B01"}, progress_callback=progress
            )
            assert isinstance(result.content[0], TextContent)
            built = json.loads(result.content[0].text)
            assert built["status"] == "done", built
            assert [gate["verdict"] for gate in built["gates"]] == ["passed"]
            assert any(line and "X1 passed" in line for line in told)

            await ask(client, "claim", task="T001-T01")
            tested = await ask(client, "submit", task="T001-T01")
            assert tested["status"] == "done", tested
            await ask(client, "claim", task="T001")
            merged = await ask(client, "submit", task="T001")
            assert merged["status"] == "done", merged
            seen = await ask(client, "evidence", task="T001-B01")
            one = await ask(client, "evidence", id=seen["gates"][0]["id"])
            assert one["command"] == "grep -q wings notes/shoes.txt"
            log = (await ask(client, "log", task="T001"))["log"]
            assert any("hermes" in line for line in log)
            assert (await ask(client, "plan", story="T001"))["story"] == "T001"

    anyio.run(work)
    assert "shoes with wings" in git(project.root, "show", "main:notes/shoes.txt")


def test_a_lie_a_trespass_and_a_stranger_get_nowhere(project: Project) -> None:
    async def work() -> None:
        async with connected(project) as client, connected(project, "stranger") as stranger:
            await ask(client, "claim", task="T001")
            await ask(client, "submit", task="T001", plan=the_plan(project))
            build = await ask(client, "claim", task="T001-B01")
            assert "lease.not_yours" in await ask(stranger, "submit", task="T001-B01", fails=True)
            assert "hint: " in await ask(stranger, "claim", task="T001-B01", fails=True)
            given = await ask(client, "submit", task="T001-B01", outcome="release")
            assert given["status"] == "ready"
            build = await ask(client, "claim", task="T001-B01")
            assert build["attempt"] == 2
            (project.root / "README.md").write_text("I was here\n")
            refused = await ask(client, "submit", task="T001-B01", reason="all pass", fails=True)
            assert "the main checkout: README.md was changed" in refused

    anyio.run(work)
    task = project.board().subtask_by_id["T001-B01"]
    assert task.status.value == "needs_adapt"
    assert task.failure is not None
    assert task.failure.kind == "isolation"


def test_the_tools_cost_an_agent_few_tokens(project: Project) -> None:
    async def listed() -> list[dict[str, Any]]:
        async with connected(project) as client:
            tools = (await client.list_tools()).tools
            return [tool.model_dump(mode="json", exclude_none=True) for tool in tools]

    tools = anyio.run(listed)
    assert len(tools) <= 8
    text = json.dumps(tools)
    # Tokenisers for code and prose take words and signs apart like this, or in larger pieces;
    # long words may be split once more, hence a piece for every four letters.
    pieces = re.findall(r"\w{1,4}|[^\w\s]", text)
    assert len(pieces) < MAX_TOKENS, len(pieces)


def test_the_missing_extra_is_named(project: Project) -> None:
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", BLOCKED],
        cwd=project.root, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "mcp.missing" in done.stderr
    assert "pip install 'oodatcaa[mcp]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_evidence_is_listed_and_run_again(project: Project) -> None:
    async def work() -> None:
        async with connected(project) as client:
            await ask(client, "claim", task="T001")
            await ask(client, "submit", task="T001", plan=the_plan(project))
            build = await ask(client, "claim", task="T001-B01")
            place = Path(build["work_in"]) / "notes/shoes.txt"
            place.parent.mkdir(exist_ok=True)
            place.write_text("shoes with wings\n")
            await ask(client, "submit", task="T001-B01")

    anyio.run(work)
    text = type_command(project.root, "evidence", "T001", "--list")
    assert "E-T001-B01-a1-001-X1  passed" in text
    assert "grep -q wings" in text
    again = type_command(project.root, "evidence", "E-T001-B01-a1-001-X1")
    assert "E-T001-B01-a1-001-X1  passed: reproduces (same output)" in again
    kept = project.work / "evidence/T001/E-T001-B01-a1-001-X1.json"
    kept.write_text(kept.read_text().replace("grep -q wings notes", "grep -q hooves notes"))
    text = type_command(project.root, "evidence", "T001-B01", expect=1)
    assert "DIFFERS (exit code 0, now 1; passed, now failed" in text
    assert "evidence.differs" in text
    assert project.board().subtask_by_id["T001-B01"].status.value == "done"  # it moves nothing


def test_waiving_is_for_people_with_reasons(project: Project) -> None:
    root = project.root
    assert "Missing option" in type_command(root, "waive", "T001", "G1", "--why", "x", expect=2)
    waive = ("waive", "T001", "G1", "--hours", "1")
    assert "waive.no_reason" in type_command(root, *waive, "--why", " ", expect=4)
    agent = (*waive, "--why", "trust me", "--as", "builder-A")
    assert "waive.not_a_person" in type_command(root, *agent, expect=4)
