"""`oodatcaa mcp`: the outside agent's verbs as tools of the Model Context Protocol, over stdio."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Annotated, Any, Literal

import anyio
import anyio.from_thread
import anyio.to_thread
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from oodatcaa.app.outside_desk import OutsideDesk
from oodatcaa.domain.task import Role
from oodatcaa.errors import OodatcaaError

INSTRUCTIONS = (
    "Work a sprint's queue: next, claim, do the work in the folder that claim names (heartbeat "
    "while it takes long), submit. The framework checks everything itself."
)

TaskId = Annotated[str, Field(description="T001, or a subtask: T001-B01")]
RoleName = Literal["", "planner", "builder", "tester", "refiner", "integrator"]


def make_server(desk: OutsideDesk) -> MCPServer[Any]:
    """Eight tools over `desk`. An error is told with its code and what to do next."""
    version = importlib.metadata.version("oodatcaa")
    server: MCPServer[Any] = MCPServer(
        "oodatcaa", instructions=INSTRUCTIONS, version=version, log_level="WARNING"
    )
    _reading(server, desk)
    _working(server, desk)
    return server


def _reading(server: MCPServer[Any], desk: OutsideDesk) -> None:
    @server.tool(structured_output=False)
    async def status() -> dict[str, Any]:
        """Where the sprint stands, and what you hold."""
        return await _told(desk.status)

    @server.tool(structured_output=False)
    async def plan(
        story: str = "",
        schema: Annotated[
            bool, Field(description="the JSON Schema of a plan record instead")
        ] = False,
    ) -> dict[str, Any]:
        """The newest plan of a story: goal, steps, gates."""
        return await _told(lambda: desk.plan(story, schema))

    @server.tool(structured_output=False)
    async def evidence(
        task: str = "",
        id: Annotated[str, Field(description="one piece, with the end of its output")] = "",
    ) -> dict[str, Any]:
        """What the framework saw when it ran a task's gates."""
        return await _told(lambda: desk.evidence(task, id))

    @server.tool(structured_output=False)
    async def log(task: str = "", lines: int = 20) -> dict[str, Any]:
        """What happened, oldest first; of one task or all."""
        return await _told(lambda: {"log": desk.log(task, lines)})


def _working(server: MCPServer[Any], desk: OutsideDesk) -> None:
    @server.tool(structured_output=False)
    async def next(role: RoleName = "") -> dict[str, Any]:
        """What can be claimed now, best first."""
        return await _told(lambda: desk.next(_role(role)))

    @server.tool(structured_output=False)
    async def claim(task: TaskId = "", role: RoleName = "") -> dict[str, Any]:
        """Hold a task (or the first one for a role). Says what to do, where, and what decides."""
        return await _told(lambda: desk.claim(task, _role(role)))

    @server.tool(structured_output=False)
    async def heartbeat(task: TaskId) -> dict[str, Any]:
        """Keep your claim while you work."""
        return await _told(lambda: desk.heartbeat(task))

    @server.tool(structured_output=False)
    async def submit(
        task: TaskId,
        ctx: Context[Any, Any],
        outcome: Literal["done", "failed", "release"] = "done",
        reason: Annotated[str, Field(description="for failed and release")] = "",
        plan: Annotated[
            dict[str, Any] | None, Field(description="the plan record, from planner or refiner")
        ] = None,
    ) -> dict[str, Any]:
        """Hand in your work: the framework runs all gates (this may take minutes) and answers with
        their verdicts. Or report a failure, or give the task back."""
        say = _progress(ctx)
        return await _told(lambda: desk.submit(task, outcome, reason, plan, say))


async def _told(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run `work` beside the event loop, so that pings and cancellations are still answered."""

    def guarded() -> dict[str, Any]:
        try:
            return work()
        except OodatcaaError as error:
            lines = [f"{error.message} [{error.code}]", *(f"- {line}" for line in error.details)]
            raise ToolError("\n".join([*lines, f"hint: {error.hint}"])) from error

    return await anyio.to_thread.run_sync(guarded)


def _progress(ctx: Context[Any, Any]) -> Callable[[str], None]:
    """Tell the host what is going on; a long call without a sign looks dead."""
    told = 0

    def say(text: str) -> None:
        nonlocal told
        told += 1
        anyio.from_thread.run(ctx.report_progress, float(told), None, text)

    return say


def _role(name: str) -> Role | None:
    return Role(name) if name else None


def serve(desk: OutsideDesk) -> None:
    """Serve until the host closes stdin."""
    make_server(desk).run("stdio")
