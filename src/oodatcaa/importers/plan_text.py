"""The smaller parts of a plan: front matter, objective, lists, commands in a <verify>."""

from __future__ import annotations

import re
from typing import Any

import yaml

from oodatcaa.importers.findings import Findings, short
from oodatcaa.importers.oodatcaa.scan import without_surrogates
from oodatcaa.importers.sections import Section

_MAX_FRONT = 256_000
_MOST_LOOKED_AT = 1_000
_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})")
PROGRAM = re.compile(
    r"(?:\w+=\S+\s+)*(?:cd|python[\d.]*|pytest|ruff|mypy|black|uv|uvx|pip|poetry|make|npm|npx|pnpm|"
    r"yarn|node|go|cargo|git|grep|rg|test|ls|cat|bash|sh|curl|docker|jq|find|wc|diff|xcodebuild|"
    r"swift|tsc|vitest|jest|\[|\./\S+)(?:\s|$)"
)
_WRAPPED = re.compile(r"</?(?:automated|manual|human|human-check)(?:\s[^<>\n]{0,200})?>")
"""What newer plans put around the parts of a <verify>."""
_QUOTED = re.compile(r"`([^`\n]+)`")
MOST_OF_A_STATEMENT = 2_000
_ITEM = re.compile(r"^\s*(?:[-*+]\s+(?:\[[ xX]\]\s*)?|\d+[.)]\s+)(.*)$")


class _Loader(yaml.BaseLoader):
    """Every scalar stays the text it is (`05` is no 5), and nothing is repeated by reference:
    a few aliases can unfold into gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)

    def construct_scalar(self, node: Any) -> Any:
        return without_surrogates(super().construct_scalar(node))


class FrontLines:
    """Where in the file a key or a text of the front matter stands."""

    def __init__(self, text: str, first: int) -> None:
        self._lines = text.split("\n")
        self._first = first
        self._keys: dict[str, int] = {}
        for at, line in enumerate(self._lines):
            key = re.match(r"([\w-]+)\s*:", line)
            if key:
                self._keys.setdefault(key[1].replace("-", "_"), at)

    def of(self, key: str, text: str = "") -> int:
        """The line of a top-level key, or of the first `text` below it; 1 for neither."""
        start = self._keys.get(key.replace("-", "_"))
        if start is None:
            return 1
        wanted = text.strip().split("\n")[0][:60]
        if wanted:
            for at in range(start, min(len(self._lines), start + _MOST_LOOKED_AT)):
                if wanted in self._lines[at]:
                    return self._first + at
        return self._first + start


def split_front(text: str, findings: Findings) -> tuple[dict[str, Any], str, int, FrontLines]:
    """(front matter, the rest, the line that the rest starts in, where its keys stand)."""
    match = re.match(r"\s*---[ \t]*\n(.*?)\n---[ \t]*(?:\n|$)", text, re.DOTALL)
    if match is None:
        findings.error("plan.front_matter", 1, "no front matter between two lines of ---")
        return {}, text, 1, FrontLines("", 1)
    line = text.count("\n", 0, match.end()) + 1
    lines = FrontLines(match[1], text.count("\n", 0, match.start(1)) + 1)
    return _front(match[1], findings), text[match.end() :], line, lines


def _front(text: str, findings: Findings) -> dict[str, Any]:
    try:
        if len(text) > _MAX_FRONT:
            raise yaml.YAMLError(f"longer than {_MAX_FRONT:,} characters")
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error) or "nested too deep"
        line = mark.line + 2 if mark else 1
        findings.error("plan.front_matter", line, f"unreadable front matter: {what}", text)
        return {}
    if isinstance(value, dict):
        return {str(key): item for key, item in value.items()}
    if value:
        findings.error("plan.front_matter", 2, "the front matter is no mapping", text)
    return {}


def content_of(section: Section) -> str:
    inner = "\n".join(f"<{part.name}>{content_of(part)}</{part.name}>" for part in section.parts)
    return "\n".join(text for text in (section.text.strip(), inner) if text)


def objective_of(text: str) -> tuple[str, str, str]:
    """(goal, purpose, output)"""
    found = {"": "", "purpose": "", "output": ""}
    current = ""
    for line in text.strip().split("\n"):
        match = re.match(r"\s*\**(Purpose|Output)\**\s*:\**\s*", line, re.IGNORECASE)
        if match:
            current, line = match[1].lower(), line[match.end() :]
        found[current] += line.strip() + "\n"
    return found[""].strip(), found["purpose"].strip(), found["output"].strip()


def title_of(goal: str) -> str:
    """The first sentence, at most 100 characters of it."""
    first = re.split(r"(?<=[.!?])\s|\n", goal, maxsplit=1)[0].strip().rstrip(".")
    return short(first, 100)


def key_of(phase: str, plan: str) -> str:
    number = re.match(r"[\d.]+", phase)
    return "-".join(part for part in (number[0] if number else phase, plan) if part)


def commands_of(text: str) -> tuple[list[str], str]:
    """(commands, what is left in words) of a <verify>."""
    fenced, rest = _without_fences(_WRAPPED.sub("", text))
    commands = [dedent(block) for block in fenced]
    words: list[str] = []
    for line in _whole_lines(dedent(rest)):
        item = _ITEM.match(line)
        plain = (item[1] if item else line).strip()
        quoted = [part for part in re.findall(r"`([^`]+)`", plain) if PROGRAM.match(part)]
        if PROGRAM.match(plain):
            commands.append(plain)
        elif quoted:
            commands += quoted
        elif plain and not plain.startswith(("```", "~~~")):
            words.append(plain)
    return [command for command in commands if command.strip()], " ".join(words)


def _whole_lines(text: str) -> list[str]:
    """Lines, with those that a backslash carries on."""
    found: list[list[str]] = [[]]
    for line in text.split("\n"):
        found[-1].append(line)
        if not line.rstrip().endswith("\\"):
            found.append([])
    return ["\n".join(lines) for lines in found if lines]


def commands_in(item: str) -> tuple[tuple[str, ...], str, str]:
    """(the commands in backticks of a criterion, its name, its statement).

    Many commands may share one criterion: a very long one is cut in the statement.
    """
    commands = tuple(part for part in _QUOTED.findall(item) if PROGRAM.match(part))
    statement = item if len(item) <= MOST_OF_A_STATEMENT else item[:MOST_OF_A_STATEMENT] + "…"
    return commands, " ".join(statement.split())[:120], statement


def _without_fences(text: str) -> tuple[list[str], str]:
    """(what stands in code fences, the rest). A fence that does not end is none."""
    lines = text.split("\n")
    found: list[str] = []
    rest: list[str] = []
    hopeless: dict[str, int] = {}
    at = 0
    while at < len(lines):
        match = _FENCE.match(lines[at])
        end = _fence_end(lines, at, match[1], hopeless) if match else None
        if end is None:
            rest.append(lines[at])
        else:
            found.append("\n".join(lines[at + 1 : end]))
            at = end
        at += 1
    return found, "\n".join(rest)


def _fence_end(lines: list[str], start: int, mark: str, hopeless: dict[str, int]) -> int | None:
    """The line that ends the fence of line `start`; `hopeless` keeps the shortest mark of each
    kind that nothing ends from here on, so that no text is read through twice."""
    if len(mark) >= hopeless.get(mark[0], len(mark) + 1):
        return None
    for at in range(start + 1, len(lines)):
        line = lines[at].strip()
        if len(line) >= len(mark) and not line.strip(mark[0]):
            return at
    hopeless[mark[0]] = len(mark)
    return None


def items_of(text: str) -> list[str]:
    """The entries of a list; lines that go on belong to the entry before them."""
    found: list[str] = []
    for line in text.split("\n"):
        match = _ITEM.match(line)
        if match:
            found.append(match[1].strip())
        elif line.strip() and found and line.startswith((" ", "\t")):
            found[-1] += " " + line.strip()
        elif line.strip():
            found.append(line.strip())
    return [text for text in found if text]


def dedent(text: str) -> str:
    """Without blank lines around it and without the indentation that all lines share."""
    lines = text.strip("\n").split("\n")
    filled = [line for line in lines if line.strip()]
    cut = min((len(line) - len(line.lstrip(" ")) for line in filled), default=0)
    return "\n".join(line[cut:].rstrip() for line in lines).strip("\n").rstrip()
