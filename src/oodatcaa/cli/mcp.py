"""mcp: the queue for agents in other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command("mcp")(mcp)


def mcp(
    owner: Annotated[str, typer.Option("--as", help="the agent's name in the queue")] = "mcp-agent",
    project: Annotated[
        Path | None, typer.Option(help="a folder of the project; the current one by default")
    ] = None,
) -> None:
    """Serve the queue to an agent over stdio (Model Context Protocol); a host starts this."""
    from oodatcaa.app.outside_desk import open_desk
    from oodatcaa.errors import OodatcaaError

    desk = open_desk(project, owner)
    try:
        from oodatcaa.app.mcp_server import serve
    except ModuleNotFoundError as error:
        raise OodatcaaError(
            "mcp.missing",
            f"the MCP server needs the package mcp, version 2 or newer ({error.name} is missing)",
            hint="pip install 'oodatcaa[mcp]'",
        ) from error
    serve(desk)
