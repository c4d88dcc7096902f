"""The message in a plan's commit commands. It is read, and nothing is run."""

from __future__ import annotations

import re
import shlex

MOST_OF_A_MESSAGE = 2_000
_MOST_LOOKED_AT = 8_000
_COMMIT = re.compile(r"\bgit\s+(?:-\S+\s+\S+\s+){0,4}commit\b")
_HEREDOC = re.compile(r"<<-?[ \t]*(['\"]?)(\w{1,40})\1")


def commit_message(text: str) -> str:
    """The message of the first `git commit` in a plan's commands; empty when none can be read.

    Read, never run: `-m`, several of them, and a here-document.
    """
    start = _COMMIT.search(text)
    if start is None:
        return ""
    rest = text[start.end() : start.end() + _MOST_LOOKED_AT]
    heredoc = _HEREDOC.search(rest)
    if heredoc:
        return _plain(_until(heredoc[2], rest[heredoc.end() :]))
    try:
        words = shlex.split(rest)
    except ValueError:
        return ""
    found: list[str] = []
    for at, word in enumerate(words):
        if word in ("&&", "||", ";", "git"):
            break
        if word.startswith("--message="):
            found.append(word.removeprefix("--message="))
        elif re.fullmatch(r"--message|-[a-z]*m", word):
            found += words[at + 1 : at + 2]
    return _plain("\n\n".join(found))


def _until(end: str, text: str) -> str:
    """The lines of a here-document; none when nothing ends it."""
    lines = text.split("\n")[1:]
    for at, line in enumerate(lines):
        if line.strip() == end:
            return "\n".join(lines[:at])
    return ""


def _plain(text: str) -> str:
    """Without control characters, and no longer than a message is."""
    kept = "".join(c for c in text if c == "\n" or c.isprintable())
    return kept.strip()[:MOST_OF_A_MESSAGE]
