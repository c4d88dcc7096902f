"""Who commits: the user, or for one commit only the framework itself."""

from __future__ import annotations

import os
from pathlib import Path

from oodatcaa.vcs.git import run_git

FALLBACK_NAME = "oodatcaa"
FALLBACK_EMAIL = "oodatcaa@localhost"


def identity_environment(cwd: Path) -> dict[str, str]:
    """Variables that a commit or a tag in `cwd` needs; empty when the user has an identity.

    An identity that git would guess from login and host name is not the user's, so both name and
    address must be set (configuration or environment). Nothing is ever written to a configuration.
    """
    variables: dict[str, str] = {}
    for who in ("author", "committer"):
        name = os.environ.get(f"GIT_{who.upper()}_NAME") or _setting(cwd, who, "name")
        email = (
            os.environ.get(f"GIT_{who.upper()}_EMAIL")
            or _setting(cwd, who, "email")
            or os.environ.get("EMAIL")
        )
        if not (name and email):
            variables[f"GIT_{who.upper()}_NAME"] = FALLBACK_NAME
            variables[f"GIT_{who.upper()}_EMAIL"] = FALLBACK_EMAIL
    return variables


def _setting(cwd: Path, who: str, key: str) -> str:
    for section in (who, "user"):
        output = run_git(cwd, ["config", "--get", f"{section}.{key}"], may_fail=True)
        if output.ok and output.line.strip():
            return output.line
    return ""
