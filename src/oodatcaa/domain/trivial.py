"""Commands that decide nothing: they end well whatever was built."""

from __future__ import annotations

import shlex

_ALWAYS_WELL = frozenset({"true", ":", "echo", "printf", "pwd"})
_LEAVES_WELL = frozenset({"exit 0", "exit"})
_ALWAYS_BADLY = frozenset({"false", "exit 1"})
_PASS_ON = frozenset({"cat", "head", "tail", "tee", "less", "more", "sort", "wc"})
"""At the end of a pipe these hide the exit code of what stands before them."""
_SHELLS = frozenset({"sh", "bash", "dash", "zsh"})
_EMPTY_SCRIPTS = frozenset({"", "pass", "0", "None", "True", "exit()", "quit()"})
_JOINTS = frozenset({";", "&&", "||", "|", "&", "\n", ";;", "|&"})


def ends_well_anyway(command: str) -> bool:
    """Whether `command` is one of the known ways to write a check that can not fail: `true`,
    `echo ok`, `pytest || true`, `pytest; true`, `pytest | tail`, `sh -c true`, or nothing at all.

    False says little: there are endless ways, and only the known ones are named.
    """
    parts = _parts(command)
    if parts is None:
        return False
    return _well(parts)


def ends_badly_anyway(command: str) -> bool:
    """The same for a check that has to fail: `false`, `exit 1`."""
    parts = _parts(command)
    if parts is None:
        return False
    words = [word for word in parts if word not in _JOINTS]
    return len(words) == len(parts) and _name(words) in _ALWAYS_BADLY


def _parts(command: str) -> list[str] | None:
    """The command's words and joints; None for what a shell itself could not read."""
    lines = " \n ".join(line for line in command.splitlines() if line.strip())
    reader = shlex.shlex(lines, posix=True, punctuation_chars="();<>|&\n")
    reader.whitespace = " \t\r"
    reader.whitespace_split = True
    try:
        return list(reader)
    except ValueError:
        return None


def _well(parts: list[str]) -> bool:
    """The exit code of a list is that of what ran last."""
    for joint in (frozenset({";", "\n"}), frozenset({"&"})):
        cut = _last(parts, joint)
        if cut is not None:
            rest = parts[cut + 1 :]
            if not rest and joint != {"&"}:
                return _well(parts[:cut])
            # What goes to the background is not waited for.
            return not rest or _well(rest)
    cut = _last(parts, frozenset({"&&", "||"}))
    if cut is not None:
        before, after = parts[:cut], parts[cut + 1 :]
        if parts[cut] == "||":
            return _well(after) or _well(before)
        return _well(after) and _well(before)
    cut = _last(parts, frozenset({"|", "|&"}))
    if cut is not None:
        after = parts[cut + 1 :]
        return _name(after[:1]) in _PASS_ON or _plain(after)
    return _plain(parts)


def _plain(words: list[str]) -> bool:
    while words and ("=" in words[0] and not words[0].startswith(("-", "=", "["))):
        words = words[1:]
    if not words:
        return True
    if words[0] == "!":
        return _name(words[1:]) in _ALWAYS_BADLY
    tool = words[0].rsplit("/", 1)[-1]
    if tool in _SHELLS and words[1:2] == ["-c"]:
        return ends_well_anyway(" ".join(words[2:3]))
    if tool.strip("{}").startswith("python") and words[1:2] == ["-c"]:
        return " ".join(words[2:3]).strip().rstrip(";") in _EMPTY_SCRIPTS
    if tool in ("[", "test"):
        return _always_true([word for word in words[1:] if word != "]"])
    return tool in _ALWAYS_WELL or _name(words) in _LEAVES_WELL


def _always_true(words: list[str]) -> bool:
    """`[ 1 ]`, `test 1 = 1`: no variable, no file."""
    if any("$" in word or "`" in word for word in words):
        return False
    if len(words) == 1:
        return words[0] != ""
    return len(words) == 3 and words[1] in ("=", "==", "-eq") and words[0] == words[2]


def _last(parts: list[str], joints: frozenset[str]) -> int | None:
    found = [place for place, word in enumerate(parts) if word in joints]
    return found[-1] if found else None


def _name(words: list[str]) -> str:
    if not words:
        return ""
    tool = words[0].rsplit("/", 1)[-1]
    return " ".join([tool, *words[1:]])
