"""The scripted agent, speaking the Agent Client Protocol through the library's agent side.

`python scripted_acp_agent.py SCRIPT`: the same scripts and actions as scripted_agent.py, and
{"ask": kind, "path": …, "command": …, "then": [actions if allowed]} · {"client_write": path,
"text": …} · {"client_read": path}. `say` and `done` become message chunks, `usage` the turn's
usage; `error` ends the turn with a refusal.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any, cast

import acp
from acp import schema

from scripted_agent import next_turn, play


class Scripted:
    def __init__(self, script: Path) -> None:
        self._script = script
        self._data = json.loads(script.read_text(encoding="utf-8"))
        self._client: Any = None
        self._usage: schema.Usage | None = None
        self._reason: schema.StopReason = "end_turn"

    def on_connect(self, conn: acp.Client) -> None:
        self._client = conn

    async def initialize(self, protocol_version: int, **kwargs: Any) -> schema.InitializeResponse:
        able = schema.AgentCapabilities(load_session=True)
        return schema.InitializeResponse(protocol_version=1, agent_capabilities=able)

    async def new_session(self, cwd: str, **kwargs: Any) -> schema.NewSessionResponse:
        self._wrote({"new": cwd})
        return schema.NewSessionResponse(session_id="acp-1")

    async def load_session(self, cwd: str, session_id: str, **kwargs: Any) -> Any:
        self._wrote({"loaded": session_id})
        await self._say(session_id, "history that is replayed")
        return schema.LoadSessionResponse()

    async def cancel(self, session_id: str, **kwargs: Any) -> None:
        self._wrote({"cancelled": session_id})

    async def prompt(
        self, prompt: list[Any], session_id: str, **kwargs: Any
    ) -> schema.PromptResponse:
        self._wrote({"prompt": prompt[0].text, "cwd": str(Path.cwd()), "pid": os.getpid()})
        for action in next_turn(self._script, self._data):
            await self._play(session_id, action)
        return schema.PromptResponse(stop_reason=self._reason, usage=self._usage)

    async def _play(self, session: str, action: dict[str, Any]) -> None:
        (name, value), *_ = action.items()
        if name in ("say", "done"):
            await self._say(session, value)
        elif name == "usage":
            tokens = {"input_tokens": value[0], "output_tokens": value[1]}
            self._usage = schema.Usage(total_tokens=sum(value[:2]), **tokens)
            if len(value) > 2:
                cost = schema.Cost(amount=value[2], currency="USD")
                update = schema.UsageUpdate(
                    session_update="usage_update", used=1, size=100, cost=cost
                )
                await self._client.session_update(session_id=session, update=update)
        elif name == "error":
            self._reason = "refusal"
        elif name in ("sleep", "silent"):
            await asyncio.sleep(value)
        elif name == "client_write":
            await self._client.write_text_file(
                session_id=session, path=value, content=action["text"]
            )
        elif name == "client_read":
            await self._client.read_text_file(session_id=session, path=value)
        elif name == "ask":
            if await self._allowed(session, action):
                for then in action.get("then", ()):
                    await self._play(session, then)
        else:
            play(action)

    async def _allowed(self, session: str, action: dict[str, Any]) -> bool:
        path, command = action.get("path"), action.get("command")
        call = schema.ToolCallUpdate(
            tool_call_id="call-1",
            kind=action["ask"],
            title="a tool",
            locations=[schema.ToolCallLocation(path=path)] if path else None,
            raw_input={"command": command} if command else None,
        )
        options = [
            schema.PermissionOption(option_id="yes", name="Allow", kind="allow_once"),
            schema.PermissionOption(option_id="no", name="Reject", kind="reject_once"),
        ]
        answer = await self._client.request_permission(
            session_id=session, tool_call=call, options=options
        )
        return bool(getattr(answer.outcome, "option_id", "") == "yes")

    async def _say(self, session: str, text: str) -> None:
        await self._client.session_update(
            session_id=session, update=acp.update_agent_message_text(text)
        )

    def _wrote(self, call: dict[str, Any]) -> None:
        with self._script.with_suffix(".calls.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(call) + "\n")


if __name__ == "__main__":
    asyncio.run(acp.run_agent(cast(acp.Agent, Scripted(Path(sys.argv[1])))))
