"""Finds the parts of a plan written between XML-like tags.

The text between them is Markdown and code, full of `<` and `&`: no XML parser would do. A tag
counts when it stands at the beginning of a line outside a code fence.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass, field

_FENCE = re.compile(r"\s*(`{3,}|~{3,})")
_OPEN = re.compile(r"\s*<([a-z][a-z0-9_-]*)((?:\s+[a-z_:-]+\s*=\s*\"[^\"<>]*\")*)\s*>")
_ATTRIBUTE = re.compile(r"([a-z_:-]+)\s*=\s*\"([^\"]*)\"")
CONTAINERS = frozenset({"tasks", "task", "feature"})
"""Tags that hold other tags; everything else holds text."""
_STOPS = {"task": frozenset({"tasks", "task"})}


@dataclass(slots=True)
class Section:
    name: str
    line: int
    text: str = ""
    text_line: int = 0
    """The line that `text` starts in."""
    attributes: dict[str, str] = field(default_factory=dict)
    parts: list[Section] = field(default_factory=list)
    closed: bool = True

    def part(self, name: str) -> Section | None:
        return next((part for part in self.parts if part.name == name), None)


@dataclass(slots=True)
class Outline:
    sections: list[Section]
    loose: list[tuple[int, str]]
    """(line, text) of what stands outside every section."""
    problems: list[tuple[int, str]]


def outline(text: str, first_line: int, known: frozenset[str]) -> Outline:
    """The sections of `text`, whose first line is `first_line` of the file. Never raises.

    A section without its closing tag ends where the next known tag opens, and is reported.
    """
    return _Outliner(text.split("\n"), first_line, known).read()


class _Outliner:
    def __init__(self, lines: list[str], first_line: int, known: frozenset[str]) -> None:
        self.lines = lines
        self.first = first_line
        self.known = known
        self.problems: list[tuple[int, str]] = []
        self.loose: list[tuple[int, list[str]]] = []
        self.open: list[str] = []
        self.comment_end = 0
        self.places: dict[str, list[int]] = {}
        self.fenced = self._fenced()

    def _line(self, at: int) -> int:
        return at + self.first

    def _fenced(self) -> set[int]:
        """Lines inside code fences. A fence that does not end before its section does is none."""
        inside: set[int] = set()
        hopeless: dict[tuple[str, int], int] = {}
        at = 0
        while at < len(self.lines):
            match = _FENCE.match(self.lines[at])
            end = self._fence_end(at, match[1], hopeless) if match else None
            if match and end is None:
                self.problems.append((self._line(at), "a code fence that does not end"))
            elif end is not None or (end := self._comment_end(at)) is not None:
                inside.update(range(at, end + 1))
                at = end
            at += 1
        return inside

    def _comment_end(self, start: int) -> int | None:
        """The line that ends the comment of line `start`; None for one line, or none at all."""
        line = self.lines[start].lstrip()
        if not line.startswith("<!--") or "-->" in line:
            return None
        if self.comment_end <= start:
            after = range(start + 1, len(self.lines))
            found = (at for at in after if "-->" in self.lines[at])
            self.comment_end = next(found, len(self.lines))
        return self.comment_end if self.comment_end < len(self.lines) else None

    def _fence_end(self, start: int, mark: str, hopeless: dict[tuple[str, int], int]) -> int | None:
        """The line that closes the fence of line `start`; None when its section ends before.

        `hopeless` keeps up to which line no fence of a mark ends, so that a file of nothing but
        opening fences is read through once, not once for each of them.
        """
        key = (mark[0], len(mark))
        if start < hopeless.get(key, 0):
            return None
        closing = re.compile(rf"\s*{re.escape(mark[0])}{{{len(mark)},}}\s*(?:</[a-z_]+>\s*)?")
        odd, odd_at = "", len(self.lines)
        for at in range(start + 1, len(self.lines)):
            line = self.lines[at].strip()
            if closing.fullmatch(line):
                if not odd or self._closes_after(odd, at):
                    return at
                break
            if not odd and line.startswith("</") and line[2:-1] in self.known and line[-1] == ">":
                odd, odd_at = line[2:-1], at
            elif odd and line.startswith(mark):
                break  # another fence begins: the tag has ended the section with this one open
        hopeless[key] = odd_at
        return None

    def _closes_after(self, name: str, at: int) -> bool:
        """Whether a section is still closed from line `at` on, before another of its name opens:
        then what looked like its end before was not."""
        closed, opened = self._next(f"</{name}>", at), self._next(f"<{name}", at)
        return closed is not None and (opened is None or closed < opened)

    def _next(self, text: str, at: int) -> int | None:
        """The first line from `at` on that holds `text`."""
        places = self.places.get(text)
        if places is None:
            places = [number for number, line in enumerate(self.lines) if text in line]
            self.places[text] = places
        found = bisect_left(places, at)
        return places[found] if found < len(places) else None

    def read(self) -> Outline:
        sections: list[Section] = []
        at = 0
        while at < len(self.lines):
            match = self._opening(at)
            if match is None:
                self._leave(at, self.lines[at])
                at += 1
                continue
            section, at = self._section(at, match)
            sections.append(section)
        loose = [(self._line(start), "\n".join(lines)) for start, lines in self.loose]
        return Outline(sections, loose, self.problems)

    def _leave(self, at: int, text: str) -> None:
        """Note text outside every section, neighbouring lines together."""
        if not text.strip():
            return
        if self.loose and self.loose[-1][0] + len(self.loose[-1][1]) == at:
            self.loose[-1][1].append(text)
        else:
            self.loose.append((at, [text]))

    def _go_on(self, at: int, rest: str) -> int:
        """Where to read on when a tag ends within its line: another one may follow on it."""
        if not rest.strip():
            return at + 1
        self.lines[at] = rest
        return at

    def _opening(self, at: int) -> re.Match[str] | None:
        return None if at in self.fenced else _OPEN.match(self.lines[at])

    def _section(self, start: int, match: re.Match[str]) -> tuple[Section, int]:
        """The section that opens in line `start`, and the line after it."""
        section = Section(match[1], self._line(start))
        section.attributes = {m[1]: m[2] for m in _ATTRIBUTE.finditer(match[2])}
        rest = self.lines[start][match.end() :]
        if section.name in CONTAINERS:
            return section, self._container(section, start, rest)
        return section, self._body(section, start, rest)

    def _body(self, section: Section, start: int, rest: str) -> int:
        closing = f"</{section.name}>"
        section.text_line = self._line(start)
        if closing in rest:
            section.text, _, after = rest.partition(closing)
            return self._go_on(start, after)
        body = [rest]
        for at in range(start + 1, len(self.lines)):
            line = self.lines[at]
            ends = at not in self.fenced and (
                self._ends(at)
                or (self._opens_known(at) and not self._closes_after(section.name, at))
            )
            if closing in line and (at not in self.fenced or _FENCE.match(line)):
                before, _, after = line.partition(closing)
                section.text = "\n".join([*body, before])
                return self._go_on(at, after)
            if ends:
                return self._unclosed(section, body, at)
            body.append(line)
        return self._unclosed(section, body, len(self.lines))

    def _unclosed(self, section: Section, body: list[str], at: int) -> int:
        section.text, section.closed = "\n".join(body), False
        self.problems.append((section.line, f"<{section.name}> is never closed"))
        return at

    def _ends(self, at: int) -> bool:
        return self.lines[at].strip() in ("</task>", "</tasks>")

    def _opens_known(self, at: int) -> bool:
        match = self._opening(at)
        return match is not None and match[1] in self.known

    def _container(self, section: Section, start: int, rest: str) -> int:
        closing = f"</{section.name}>"
        # Nothing holds its own kind, so that nesting has an end whatever a file says.
        self.open.append(section.name)
        stops = _STOPS.get(section.name, frozenset()) | frozenset(self.open)
        if section.name == "tasks":
            stops |= self.known - CONTAINERS - FIELDS
        at = self._go_on(start, rest)
        while at < len(self.lines):
            match = self._opening(at)
            if self.lines[at].strip() == closing and at not in self.fenced:
                self.open.pop()
                return at + 1
            if match is None:
                if section.name == "task" and self._ends(at):
                    break
                self._leave(at, self.lines[at])
                at += 1
            elif match[1] in stops:
                break
            else:
                part, at = self._section(at, match)
                section.parts.append(part)
        self.open.pop()
        section.closed = False
        self.problems.append((section.line, f"<{section.name}> is never closed"))
        return at


FIELDS = frozenset(
    {"name", "files", "action", "verify", "done", "behavior", "implementation", "what-built"}
    | {"how-to-verify", "resume-signal", "decision", "options", "expected", "title"}
    | {"read_first", "acceptance_criteria", "how-to-fix", "instructions", "verification-steps"}
)
"""Tags inside a task."""
