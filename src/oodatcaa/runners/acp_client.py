"""The client's side of the Agent Client Protocol: files of the worktree, permissions by policy."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import acp
from acp import schema

from oodatcaa.domain.agents import AcpSpec, Order, Usage
from oodatcaa.kit.files import write_atomic
from oodatcaa.runners.policy import answer, inside
from oodatcaa.runners.ports import Watch
from oodatcaa.runners.stream import MOST_DENIED, TEXT_LIMIT, number, shorten

READ_LIMIT = 2_000_000
MOST_ASKED = 1_000
"""Permissions and files of one call: every one is logged, so whoever asks for more is ended."""
PATH_KEYS = ("path", "paths", "file_path", "filePath", "file", "files", "destination", "new_path")
COMMAND_KEYS = ("command", "cmd", "script", "code")


class PolicyClient:
    """The client's side of the protocol: files of the worktree, permissions by policy."""

    def __init__(self, order: Order, watch: Watch, spec: AcpSpec) -> None:
        self._order, self._watch, self._spec = order, watch, spec
        self.session = ""
        self.text = ""
        self.usage = Usage()
        self.refused: list[str] = []
        self.asked = 0
        self.heard = time.monotonic()

    def on_connect(self, conn: Any) -> None:
        """Part of the protocol's interface; nothing is needed of the connection."""

    async def request_permission(
        self, session_id: str, tool_call: Any, options: list[Any], **kwargs: Any
    ) -> schema.RequestPermissionResponse:
        self.heard = time.monotonic()
        kind, paths, command = _asked(tool_call)
        decided = answer(
            kind,
            paths,
            command,
            cwd=self._order.cwd,
            allowed_paths=self._order.allowed_paths,
            allowed_commands=self._order.allowed_commands,
        )
        what = shorten(command or ", ".join(paths) or tool_call.title or kind)
        self._note(decided.allowed, f"{kind or 'permission'} {what}", decided.why)
        wanted = "allow_once" if decided.allowed else "reject_once"
        option = next((item for item in options if item.kind == wanted), None)
        if option is None:
            return schema.RequestPermissionResponse(
                outcome=schema.DeniedOutcome(outcome="cancelled")
            )
        return schema.RequestPermissionResponse(
            outcome=schema.AllowedOutcome(outcome="selected", option_id=option.option_id)
        )

    async def session_update(self, session_id: str, update: Any, **kwargs: Any) -> None:
        self.heard = time.monotonic()
        kind = getattr(update, "session_update", "")
        if kind == "agent_message_chunk" and getattr(update.content, "type", "") == "text":
            self.text = (self.text + update.content.text)[-TEXT_LIMIT:]
        elif kind == "usage_update" and update.cost is not None and update.cost.currency == "USD":
            self.usage = self.usage.evolve(cost_usd=number(update.cost.amount))

    async def read_text_file(
        self,
        session_id: str,
        path: str,
        line: int | None = None,
        limit: int | None = None,
        **_: Any,
    ) -> schema.ReadTextFileResponse:
        if not inside(path, self._order.allowed_paths, self._order.cwd):
            self._note(False, f"read {shorten(path)}", "it lies outside the story's worktree")
            raise acp.RequestError.invalid_params({"path": "outside the worktree"})
        try:
            with Path(path).open(encoding="utf-8", errors="replace") as file:
                text = file.read(READ_LIMIT)
        except OSError as error:
            raise acp.RequestError.invalid_params({"path": str(error)}) from error
        lines = text.splitlines(keepends=True)
        start = max(0, (line or 1) - 1)
        kept = lines[start : start + limit] if limit is not None else lines[start:]
        return schema.ReadTextFileResponse(content="".join(kept))

    async def write_text_file(
        self, session_id: str, path: str, content: str, **kwargs: Any
    ) -> schema.WriteTextFileResponse:
        self.heard = time.monotonic()
        allowed = inside(path, self._order.allowed_paths, self._order.cwd)
        self._note(allowed, f"write {shorten(path)}", "by the place of the file")
        if not allowed:
            raise acp.RequestError.invalid_params({"path": "outside the worktree"})
        place = Path(self._order.cwd) / path
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, content)
        return schema.WriteTextFileResponse()

    def count(self, used: Any) -> None:
        """The turn's own count; what the agent does not say, or can not mean, stays unknown."""
        if used is None:
            return
        prices = self._spec.prices
        cost = self.usage.cost_usd
        given, made = number(used.input_tokens), number(used.output_tokens)
        if cost is None and prices is not None and given is not None and made is not None:
            cost = (given * prices.input + made * prices.output) / 1e6
        self.usage = Usage(
            input_tokens=None if given is None else round(given),
            output_tokens=None if made is None else round(made),
            cost_usd=cost,
        )

    def _note(self, allowed: bool, what: str, why: str) -> None:
        word = "allowed" if allowed else "refused"
        self.asked += 1
        if self.asked > MOST_ASKED:
            return
        if not allowed and len(self.refused) < MOST_DENIED:
            self.refused.append(f"{what}: {why}")
        self._watch.note(f"{word}: {what} ({why})")


def _asked(tool_call: Any) -> tuple[str, list[str], str]:
    """(kind, paths, command) of a tool call; what an agent leaves out stays empty."""
    paths = [item.path for item in tool_call.locations or ()]
    paths += [item.path for item in tool_call.content or () if getattr(item, "type", "") == "diff"]
    raw = tool_call.raw_input if isinstance(tool_call.raw_input, dict) else {}
    for key in PATH_KEYS:
        found = raw.get(key)
        paths += [item for item in (found if isinstance(found, list) else [found]) if item]
    said = [raw[key] for key in COMMAND_KEYS if raw.get(key)]
    words = [" ".join(map(str, item)) if isinstance(item, list) else str(item) for item in said]
    # Two commands in one call are compound, and so refused.
    return tool_call.kind or "", [str(path) for path in paths], "\n".join(words)
