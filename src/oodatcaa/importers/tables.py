"""What the readers of task lists in JSON share."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from oodatcaa.domain.draft import DraftStory
from oodatcaa.domain.evidence import GateKind, GateSpec
from oodatcaa.domain.source import Leftover
from oodatcaa.importers.commands import foreign_paths, script
from oodatcaa.importers.findings import Findings, as_json, short
from oodatcaa.importers.oodatcaa.scan import without_surrogates
from oodatcaa.importers.plan_text import commands_in, items_of

MOST_TASKS = 20_000


@lru_cache(maxsize=2)
def parsed(text: str) -> Any:
    """The JSON value in `text`, None when it is none."""
    try:
        return loads(text)
    except (ValueError, RecursionError):
        return None


def loads(text: str) -> Any:
    """The JSON value in `text`, which can be stored again: no half of a surrogate pair is in it.

    Raises ValueError or RecursionError.
    """
    value = json.loads(text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}"))
    return _storable(value) if "\\ud" in text.lower() else value


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if isinstance(value, dict):
        return {without_surrogates(key): _storable(item) for key, item in value.items()}
    return value


def text_of(value: object) -> str:
    """A field as text: numbers as they are written, None and containers as nothing."""
    if isinstance(value, bool) or value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    return str(value) if isinstance(value, int | float) else ""


def int_of(value: object) -> int | None:
    """`2`, `2.0` and `"2"` as 2; a boolean is no number."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value if abs(value) < 10**9 else None
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 10**9 else None
    if isinstance(value, str) and re.fullmatch(r"\s*-?\d{1,9}\s*", value):
        return int(value)
    return None


def is_set(value: object) -> bool:
    """A flag as JSON or as a table dump writes it: true, 1, "1", "true"."""
    return value is True or value == 1 or str(value).strip().lower() in ("1", "true")


def list_of(value: object) -> list[Any]:
    """A list; a JSON list inside a text, as table dumps have it; a comma-separated text."""
    if isinstance(value, list):
        return value
    if isinstance(value, str) and value.strip():
        inner = parsed(value)
        if isinstance(inner, list):
            return inner
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int | dict) and not isinstance(value, bool) else []


def criteria(text: str, prefix: str, taken: int = 0) -> tuple[list[GateSpec], list[str]]:
    """(gates, words): an entry with a command in backticks is decided by it."""
    gates: list[GateSpec] = []
    words: list[str] = []
    for item in items_of(text):
        commands, name, statement = commands_in(item)
        for command in commands:
            gates.append(
                GateSpec(
                    id=f"{prefix}{taken + len(gates) + 1}",
                    name=name,
                    kind=GateKind.COMMAND,
                    command=script(command),
                    statement=statement,
                    verbatim=True,
                )
            )
        if not commands or statement != item:
            words.append(item)
    return gates, words


@dataclass(frozen=True)
class Over:
    """A piece of work that the file says is finished or given up."""

    key: str
    title: str
    status: str
    what: str
    """What was done, in the file's words."""
    line: int
    fields: Any

    def __str__(self) -> str:
        about = f": {short(self.what, 300)}" if self.what else ""
        return f"{self.key} {short(self.title, 200)} ({self.status}, line {self.line}){about}"


MOST_OF_A_LEFTOVER = 4_000
"""Of finished work, beside each piece that builds on it; the import's record holds all of it."""


def with_finished(drafts: Iterable[DraftStory], over: Mapping[str, Over]) -> tuple[DraftStory, ...]:
    """The drafts, each with the finished work that it builds on, word for word."""
    return tuple(
        draft.evolve(
            leftovers=(
                *draft.leftovers,
                *(_finished(over[key]) for key in draft.depends_on if key in over),
            )
        )
        for draft in drafts
    )


def _finished(item: Over) -> Leftover:
    text = as_json(item.fields)
    cut = text if len(text) <= MOST_OF_A_LEFTOVER else text[:MOST_OF_A_LEFTOVER] + "…"
    what = f"builds on {item.key} {short(item.title)}, {item.status} there"
    return Leftover(what=what, place=f"line {item.line}", text=cut)


def report_paths(gates: Iterable[GateSpec], line: int, findings: Findings) -> None:
    """Commands that name a path of another machine, each with its line."""
    for gate in gates:
        for path in foreign_paths(gate.command):
            findings.warning(
                "plan.foreign_path",
                line,
                f"{path} is a path of another machine: its command can not pass here",
                gate.command,
            )


def report_graph(
    drafts: Sequence[DraftStory],
    lines: Mapping[str, int],
    settled: frozenset[str],
    findings: Findings,
) -> None:
    """Dependencies on what is not in the file, and circles, each with its line."""
    known = {draft.key for draft in drafts}
    edges = {draft.key: draft.depends_on for draft in drafts}
    for draft in drafts:
        for needed in draft.depends_on:
            if needed not in known and needed not in settled:
                findings.warning(
                    "dependency.unknown",
                    lines.get(draft.key),
                    f"{draft.key} depends on {needed}, which is not in this file",
                )
    for ring in rings(edges):
        findings.error(
            "dependency.circle",
            lines.get(ring[0]),
            f"{' -> '.join(ring)} is a circle of dependencies",
        )


def rings(edges: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """One ring per circle that a depth-first walk meets; no recursion, whatever the depth."""
    state: dict[str, int] = {}
    found: list[list[str]] = []
    for start in edges:
        path: list[str] = []
        todo: list[tuple[str, bool]] = [(start, False)]
        while todo:
            node, leaving = todo.pop()
            if leaving:
                state[node] = 2
                path.pop()
            elif state.get(node) == 1:
                found.append([*path[path.index(node) :], node])
            elif node not in state and node in edges:
                state[node] = 1
                path.append(node)
                todo.append((node, True))
                todo += [(needed, False) for needed in edges[node]]
    return found
