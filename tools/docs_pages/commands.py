"""The command line: its reference, and whether a line that somebody wrote down would parse."""

from __future__ import annotations

import inspect
import re
import shlex
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import typer.main

from docs_pages.tables import table
from oodatcaa.cli.main import app
from oodatcaa.views.markdown import code, fence, prose

PROGRAM = "oodatcaa"
GLOBAL = ("--debug", "--help")
VALUES = {bool: "switch", int: "integer", float: "number", Path: "path", datetime: "time"}


@cache
def tree() -> Any:
    """The click command behind the Typer app (Typer may carry its own copy of click)."""
    return typer.main.get_command(app)


def commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """(full name, command) of every command that does something, in the order of `--help`."""
    for name, child in (command or tree()).commands.items():
        if child.hidden:
            continue
        here = (*path, name)
        if hasattr(child, "commands"):
            yield from commands(child, here)
        else:
            yield " ".join(here), child


def reference() -> str:
    """A list of all commands, then one section each."""
    found = list(commands())
    overview = table(
        ["Command", "What it does"],
        [(f"[`{name}`](#{_slug(name)})", prose(_first(command))) for name, command in found],
    )
    return "\n\n".join([overview, *(_section(name, command) for name, command in found)])


def _slug(name: str) -> str:
    return f"{PROGRAM}-{name}".replace(" ", "-")


def _first(command: Any) -> str:
    return " ".join((command.help or "").partition("\n\n")[0].split())


def _section(name: str, command: Any) -> str:
    about = "\n\n".join(
        prose(" ".join(part.split())) for part in (command.help or "").split("\n\n")
    )
    shown = [item for item in command.params if not getattr(item, "hidden", False)]
    types = typing.get_type_hints(inspect.unwrap(command.callback))
    rows = [_row(item, types.get(item.name, str)) for item in shown]
    arguments = [row for row, item in zip(rows, shown, strict=True) if _is_argument(item)]
    options = [row for row, item in zip(rows, shown, strict=True) if not _is_argument(item)]
    words = [item.name.upper() for item in shown if _is_argument(item)]
    usage = [
        word if item.required else f"[{word}]"
        for word, item in zip(words, filter(_is_argument, shown), strict=True)
    ]
    line = " ".join([PROGRAM, name, *(["[OPTIONS]"] if options else []), *usage])
    parts = [f"### {PROGRAM} {name}", about, fence(line, "text")]
    if arguments:
        parts.append(table(["Argument", "Value", "Default", "Meaning"], arguments))
    if options:
        parts.append(table(["Option", "Value", "Default", "Meaning"], options))
    return "\n\n".join(parts)


def _is_argument(param: Any) -> bool:
    return bool(param.param_type_name == "argument")


def _row(param: Any, kind: Any) -> tuple[str, str, str, str]:
    if _is_argument(param):
        name = code(param.name.upper())
    else:
        name = ", ".join(code(one) for one in (*param.opts, *param.secondary_opts))
    return name, _value(kind), _default(param), prose(getattr(param, "help", None) or "")


def _value(kind: Any) -> str:
    """What a person writes there. Read from the annotation, which no Typer version changes."""
    choices = [one for one in typing.get_args(kind) if one is not type(None)]
    if typing.get_origin(kind) in (list, tuple):
        return f"{_value(choices[0])}, repeatable"
    if choices:
        return " or ".join(_value(one) for one in choices)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " | ".join(code(str(one.value)) for one in kind)
    return VALUES.get(kind, "text")


def _default(param: Any) -> str:
    if param.required:
        return "required"
    value = param.default
    if callable(value):
        value = value()
    if getattr(param, "is_flag", False):
        return "on" if value else "off"
    return code(str(value)) if value not in (None, "", ()) else "none"


@dataclass(frozen=True)
class Quoted:
    """A command line somewhere in a page. `whole` = it has to parse as it stands."""

    line: int
    text: str
    whole: bool


_FENCE = re.compile(r"^\s*(```+|~~~+)\s*(\w*)")
_SPAN = re.compile(r"(?<!`)`(oodatcaa(?: [^`\n]*)?)`")
SHELLS = ("console", "bash", "sh", "shell")


def quoted(text: str) -> tuple[Quoted, ...]:
    """Every `oodatcaa …` of a Markdown text, from code spans and from shell blocks.

    In a block whose lines start with `$ ` only those are commands, the rest is output.
    """
    found: list[Quoted] = []
    block: list[tuple[int, str]] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        mark = _FENCE.match(line)
        if mark and block is None:
            block, language = [], mark[2]
        elif mark and block is not None:
            if language in SHELLS:
                found += _of_block(block)
            block = None
        elif block is not None:
            block.append((number, line))
        else:
            found += [Quoted(number, span[1], False) for span in _SPAN.finditer(line)]
    return tuple(found)


def _of_block(lines: list[tuple[int, str]]) -> Iterator[Quoted]:
    prompted = any(line.lstrip().startswith("$ ") for _, line in lines)
    for number, line in lines:
        if prompted and not line.lstrip().startswith("$ "):
            continue
        plain = line.strip().removeprefix("$ ")
        for part in re.split(r"&&|\|\||[|;]", plain):
            words = part.split()
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words = words[1:]
            if words and words[0].rpartition("/")[2] == PROGRAM:
                yield Quoted(number, " ".join(words), True)


def problem(line: Quoted) -> str:
    """Why the line would not parse; "" when it would.

    A code span may leave out arguments (`oodatcaa submit`), a line of a shell block may not.
    """
    try:
        words = shlex.split(line.text if line.whole else _spelt(line.text), comments=True)[1:]
    except ValueError as error:
        return f"{line.text}: {error}"
    words = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if word not in GLOBAL and (word not in ("…", "...") or before.startswith("--"))
    ]
    command = tree()
    while hasattr(command, "commands") and words:
        name, words = words[0], words[1:]
        if name not in command.commands:
            return f"{line.text}: there is no command {name!r}"
        command = command.commands[name]
    if hasattr(command, "commands"):
        return "" if not line.whole else _unless_help(line)
    try:
        command.make_context(PROGRAM, words)
    except Exception as error:  # noqa: BLE001 - Typer may bring its own click, and its own errors
        missing = type(error).__name__ == "MissingParameter"
        if missing and not line.whole:
            return ""
        return f"{line.text}: {getattr(error, 'message', '') or error}"
    return ""


def _spelt(text: str) -> str:
    """A code span may use the notation of manuals: `[--json]` for optional, `a|b` for or."""
    return re.sub(r"(?<=\w)\|[\w|-]+", "", re.sub(r"[\[\]]", "", text))


def _unless_help(line: Quoted) -> str:
    return "" if "--help" in line.text else f"{line.text}: names no command"
