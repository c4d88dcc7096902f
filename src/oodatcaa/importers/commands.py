"""Commands of a plan as text: nothing here runs one."""

from __future__ import annotations

import re
from collections.abc import Mapping

_ELSEWHERE = re.compile(
    r"(?:/Users|/home|/Volumes|/root|/mnt|[A-Za-z]:\\Users)[/\\][^\s\"';&|)]+|(?<=cd )/[^\s\"';&|]+"
)
_JOINED = re.compile(r"\"[^\"]*\"|'[^']*'|\\\n|(&&|\|\||\||;)\s*\n")


def foreign_paths(command: str) -> tuple[str, ...]:
    """Absolute paths into somebody's home, or that it changes into: of another machine."""
    return tuple(dict.fromkeys(match[0].rstrip("/") for match in _ELSEWHERE.finditer(command)))


def script(command: str) -> str:
    """`command`, with `set -e` first when it is several ones: no success hides a failure."""
    if "\n" in _JOINED.sub("", command).strip() and not command.startswith("set -e"):
        return f"set -e\n{command}"
    return command


def rewrite(text: str, maps: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """(text with every whole path OLD replaced by NEW, the OLDs that occur nowhere).

    OLD counts as a whole path or the beginning of a longer one: `/a/b` is not in `/a/bc`.
    """
    unused = []
    for old, new in maps.items():
        path = re.compile(rf"(?<![\w./~-]){re.escape(old.rstrip('/'))}(?![\w.-])(/(?=\S))?")
        found = 0

        def put(match: re.Match[str], new: str = new) -> str:
            nonlocal found
            found += 1
            start = new.rstrip("/") or "."
            return ("" if start == "." else start + "/") if match[1] else start

        text = path.sub(put, text)
        if not found:
            unused.append(old)
    return text, tuple(unused)
