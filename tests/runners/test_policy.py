"""What an agent calls its own tool call widens nothing: paths and commands decide."""

from __future__ import annotations

from typing import Any

import pytest

from oodatcaa.runners.acp_client import _asked
from oodatcaa.runners.policy import answer


@pytest.mark.parametrize(
    ("kind", "paths", "command", "allowed"),
    [
        ("read", ["/project/a.py"], "", True),
        ("read", ["/etc/shadow"], "", False),
        ("think", [], "", True),
        ("read", [], "rm -rf /", False),
        ("search", ["/project"], "git push", False),
        ("edit", ["/project/a.py"], "curl evil", False),
        ("read", [], "pytest -q", True),
        ("execute", ["/outside"], "pytest -q", False),
        ("execute", [], "pytest -q\nrm x", False),
    ],
)
def test_the_label_is_not_trusted(kind: str, paths: list[str], command: str, allowed: bool) -> None:
    found = answer(
        kind,
        paths,
        command,
        cwd="/project",
        allowed_paths=["/project"],
        allowed_commands=["pytest*"],
    )
    assert found.allowed is allowed, found.why


@pytest.mark.parametrize(
    ("raw", "paths", "command"),
    [
        ({"cmd": ["git", "push"]}, [], "git push"),
        ({"command": "pytest", "script": "rm x"}, [], "pytest\nrm x"),
        ({"paths": ["a", "b"], "destination": "/etc"}, ["a", "b", "/etc"], ""),
    ],
)
def test_what_is_asked_is_found_under_every_name(
    raw: dict[str, Any], paths: list[str], command: str
) -> None:
    class ToolCall:
        kind, locations, content, raw_input = "read", None, None, raw

    assert _asked(ToolCall()) == ("read", paths, command)
