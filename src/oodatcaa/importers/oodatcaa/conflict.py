"""Conflict markers in the middle of a file: the text of each side, with the lines of the file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_MARKER = re.compile(r"(<{7}|>{7}|\|{7}|={7})(?: .*)?\s*")
OURS, THEIRS, BASE = "ours", "theirs", "base"


@dataclass(slots=True)
class Side:
    name: str
    lines: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    label: str = ""

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def line(self, number: int) -> int:
        """The line in the file of this side's line `number`."""
        if not self.numbers:
            return 1
        return self.numbers[min(max(number, 1), len(self.numbers)) - 1]

    def add(self, text: str, number: int) -> None:
        self.lines.append(text)
        self.numbers.append(number)


@dataclass(slots=True)
class Sides:
    sides: list[Side]
    hunks: int
    first: int
    """The line of the first marker."""
    problems: list[tuple[int, str]]
    """(line, what) of markers that do not pair up."""
    base: list[str]
    """The lines of the common ancestor that stand between diff3 markers."""


def split_sides(text: str) -> Sides:
    """One side when the file has no markers; else ours, theirs and, with diff3 markers, base.

    Markers that do not pair up are taken out and reported; no other line is ever left out of
    all the sides.
    """
    ours, theirs, base = Side(OURS), Side(THEIRS), Side(BASE)
    everyone = (ours, theirs, base)
    problems: list[tuple[int, str]] = []
    base_lines: list[str] = []
    current: tuple[Side, ...] = everyone
    hunks, opened, first, has_base = 0, 0, 0, False
    for number, line in enumerate(text.split("\n"), start=1):
        match = _MARKER.fullmatch(line)
        if match is None:
            for side in current:
                side.add(line, number)
            if current == (base,):
                base_lines.append(line)
            continue
        first = first or number
        mark, label = match[1][0], line[7:].strip()
        if mark == "<":
            if opened:
                problems.append((opened, "a conflict starts before the one before it ended"))
            opened, hunks, current = number, hunks + 1, (ours,)
            ours.label = ours.label or label
        elif not opened:
            problems.append((number, f"a stray conflict marker {line.strip()!r}"))
        elif mark == "|":
            current, has_base = (base,), True
        elif mark == "=":
            current = (theirs,)
        else:
            current, opened = everyone, 0
            theirs.label = theirs.label or label
    if opened:
        problems.append((opened, "a conflict that does not end"))
    if not hunks:
        return Sides([ours], 0, first, problems, [])
    sides = [ours, theirs, *([base] if has_base else [])]
    return Sides(sides, hunks, first, problems, base_lines)
