"""Scripts for the scripted agent, and the specs that run it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from oodatcaa.domain.agents import CommandSpec, Order

AGENT = Path(__file__).with_name("scripted_agent.py")
ACP_AGENT = Path(__file__).with_name("scripted_acp_agent.py")

STREAM = {
    "format": "jsonl",
    "session": ["session"],
    "text": [
        {"when": {"type": "text"}, "path": "text"},
        {"when": {"type": "done"}, "path": "text"},
    ],
    "success": [{"when": {"type": "done"}}],
    "error": [{"when": {"type": "error"}, "path": "message"}],
    "denied": [{"when": {"type": "done"}, "path": "denied"}],
    "usage": [
        {"when": {"type": "usage"}, "input": ["input"], "output": ["output"], "cost": "cost"}
    ],
}


def script(path: Path, *turns: list[dict[str, Any]], **more: Any) -> Path:
    """A script file; call n of the agent plays turn n, the last one for ever."""
    path.write_text(json.dumps({"turns": list(turns), **more}), encoding="utf-8")
    return path


def calls(path: Path) -> list[dict[str, Any]]:
    """How the agent of this script was called, oldest first."""
    file = path.with_suffix(".calls.jsonl")
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def runner_values(path: Path, **more: Any) -> dict[str, Any]:
    """[runners.scripted] as config.toml holds it."""
    base = [sys.executable, str(AGENT), str(path)]
    return {
        "argv": [*base, "{prompt}"],
        "resume_argv": [*base, "--resume", "{session}", "{prompt}"],
        "env": {"SCRIPTED_CONFIG": "{config_dir}"},
        "stream": STREAM,
        **more,
    }


def spec(path: Path, **more: Any) -> CommandSpec:
    return CommandSpec.model_validate(runner_values(path, **more))


def order(tmp_path: Path, **more: Any) -> Order:
    values = {
        "prompt": "# Do it",
        "cwd": str(tmp_path),
        "folder": str(tmp_path / "call"),
        "config_dir": str(tmp_path / "config"),
        "seconds": 30,
        "silence_seconds": 20,
        **more,
    }
    return Order.model_validate(values)
