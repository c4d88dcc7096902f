"""A JSON reader that goes on after damage and knows the line of every value.

For valid JSON it yields what `json.loads` yields. Otherwise it reports each damaged place and
keeps everything around it: a string ends at the end of its line, a bracket that is missing is
closed where its parent goes on, two objects that ran into each other are parted at the second
"id". Objects that are intact by themselves and look like tasks are found beforehand; nothing that
was misread before one can swallow it.
"""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

MAX_DEPTH = 60
_STRING = re.compile(r'"(?:[^"\\\r\n]|\\[^\r\n])*+"?')
_OBJECT = re.compile(r'\{\s*+"(?:[^"\\\r\n]|\\.)*+"\s*+:')
_TOKEN = re.compile(r'[^\s,:\[\]{}"]+')
_SPACE = re.compile(r"[\s]*")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_LITERALS: dict[str, object] = {"true": True, "false": False, "null": None}
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(slots=True, eq=False)
class Node:
    """One value: exactly one of `fields`, `items` and `scalar` says what it is."""

    line: int
    scalar: Any = None
    items: list[Node] | None = None
    fields: dict[str, Node] | None = None
    strays: list[Node] = field(default_factory=list)
    """Values without a key inside an object: what followed a lost bracket."""
    damaged: bool = False

    def children(self) -> Iterator[tuple[str, Node]]:
        for item in self.items or ():
            yield "", item
        yield from (self.fields or {}).items()
        for stray in self.strays:
            yield "", stray

    @property
    def plain(self) -> Any:
        """The value as `json.loads` would give it."""
        if self.fields is not None:
            return {key: node.plain for key, node in self.fields.items()}
        if self.items is not None:
            return [node.plain for node in self.items]
        return self.scalar


@dataclass(frozen=True, slots=True)
class Damage:
    line: int
    code: str
    message: str
    content: str = ""


@dataclass(slots=True)
class Scan:
    roots: list[Node]
    damage: list[Damage]


def scan(text: str, is_task: Callable[[dict[str, Any]], bool]) -> Scan:
    """Read `text`, damaged or not. Never raises."""
    error = strict_error(text)
    fences = intact_objects(text, is_task) if error else []
    reader = _Reader(text, fences)
    if error:
        reader.damage.append(Damage(error[0], "json.invalid", f"not valid JSON: {error[1]}"))
    return Scan(reader.read(), reader.damage)


def strict_error(text: str) -> tuple[int, str] | None:
    """(line, what) of the first thing that makes `text` invalid JSON."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.lineno, error.msg
    except (RecursionError, ValueError) as error:  # nested too deep; an integer of 5,000 digits
        return 1, str(error)
    return None


def intact_objects(text: str, is_task: Callable[[dict[str, Any]], bool]) -> list[int]:
    """Offsets of the outermost objects that are valid by themselves and hold a task."""
    decoder = json.JSONDecoder()
    found: list[int] = []
    at = _candidate(text, 0)
    while at >= 0:
        try:
            value, end = decoder.raw_decode(text, at)
        except ValueError:
            at = _candidate(text, at + 1)
            continue
        except RecursionError:
            for _ in range(100):  # no task is that deep; going one by one would take minutes
                at = _candidate(text, at + 1) if at >= 0 else at
            continue
        if _holds_task(value, is_task):
            found.append(at)
        at = _candidate(text, end)
    return found


def _candidate(text: str, start: int) -> int:
    """The next place where an object with a key may begin; -1 = none. Sparing the decoder matters:
    each of its errors counts the lines before it."""
    match = _OBJECT.search(text, start)
    return match.start() if match else -1


def _holds_task(value: Any, is_task: Callable[[dict[str, Any]], bool]) -> bool:
    front = [value]
    while front:
        item = front.pop()
        if isinstance(item, dict):
            if is_task(item):
                return True
            front += item.values()
        elif isinstance(item, list):
            front += item
    return False


class _Reader:
    def __init__(self, text: str, fences: list[int]) -> None:
        self.text = text
        self.at = 0
        self.fences = fences
        self.damage: list[Damage] = []
        self._breaks = [match.start() for match in re.finditer("\n", text)]
        self._open: list[str] = []
        self._fences = frozenset(fences)
        self._limit = MAX_DEPTH

    def read(self) -> list[Node]:
        roots: list[Node] = []
        while not self._ended():
            node = self._value()
            if node is not None:
                roots.append(node)
            elif not self._ended():
                self._junk()
        return roots

    def _line(self, offset: int) -> int:
        return bisect.bisect_left(self._breaks, offset) + 1

    def _note(self, offset: int, code: str, message: str, content: str = "") -> None:
        self.damage.append(Damage(self._line(offset), code, message, content))

    def _ended(self) -> bool:
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.at >= len(self.text)

    def _peek(self) -> str:
        return "" if self._ended() else self.text[self.at]

    def _junk(self) -> None:
        """Step over what can not be read, at least one character, and say what it was."""
        start = self.at
        match = _TOKEN.match(self.text, start)
        end = match.end() if match else start + 1
        self.at = self._before_fence(start, max(end, start + 1))
        self._note(start, "json.junk", "skipped what is no JSON", self.text[start : self.at])

    def _before_fence(self, start: int, end: int) -> int:
        """`end`, or the start of an intact task that would be swallowed."""
        place = bisect.bisect_right(self.fences, start)
        return min(end, self.fences[place]) if place < len(self.fences) else end

    def _value(self) -> Node | None:
        """The value here; None when there is none (nothing is consumed then)."""
        char = self._peek()
        if char == '"':
            return self._string()
        if char in "{[" and char:
            limit = self._limit
            if self.at in self._fences:  # an intact task is read, however deep it sits
                self._limit = len(self._open) + MAX_DEPTH
            elif len(self._open) >= limit:
                return None
            self._open.append(char)
            node = self._object() if char == "{" else self._array()
            self._open.pop()
            self._limit = limit
            return node
        return self._bare() if char and char not in ",:]}" else None

    def _string(self) -> Node:
        start = self.at
        match = _STRING.match(self.text, start)
        assert match is not None
        end = self._before_fence(start, match.end())
        raw, self.at = self.text[start:end], end
        node = Node(self._line(start))
        closed = len(raw) > 1 and raw.endswith('"')
        if not closed:
            node.damaged, node.scalar = True, without_surrogates(raw[1:])
            self._note(start, "json.string", "a string that does not end", raw)
            return node
        try:
            node.scalar = json.loads(raw, strict=False)
        except ValueError as error:
            node.damaged, node.scalar = True, raw[1:-1]
            self._note(start, "json.string", f"unreadable string: {error}", raw)
            return node
        if _SURROGATE.search(node.scalar):
            node.scalar = without_surrogates(node.scalar)
            self._note(start, "json.string", "half a surrogate pair, replaced", raw)
        return node

    def _bare(self) -> Node | None:
        start = self.at
        match = _TOKEN.match(self.text, start)
        if match is None:
            return None
        raw = match.group()
        self.at = match.end()
        node = Node(self._line(start))
        if raw in _LITERALS:
            node.scalar = _LITERALS[raw]
        elif _NUMBER.fullmatch(raw) and len(raw) < 4000:
            node.scalar = float(raw) if any(c in raw for c in ".eE") else int(raw)
        else:
            node.damaged, node.scalar = True, without_surrogates(raw)
            self._note(start, "json.junk", f"{raw[:40]!r} is no JSON value", raw)
        return node

    def _array(self) -> Node:
        start, self.at = self.at, self.at + 1
        node = Node(self._line(start), items=[])
        assert node.items is not None
        need_comma = False
        while True:
            char = self._peek()
            if char == "":
                return self._unclosed(node, start, "[")
            if char == "]":
                self.at += 1
                return node
            if char == "}" and "{" in self._open:
                return self._unclosed(node, start, "[")
            if char == ",":
                self.at += 1
                need_comma = False
                continue
            if need_comma and char != ":":
                self._note(self.at, "json.comma", "a comma is missing")
            item = self._value()
            if item is None:
                node.damaged = True
                self._junk()
                continue
            if self._peek() == ":" and isinstance(item.scalar, str):
                item = self._headless(item)
                node.damaged = True
            node.items.append(item)
            need_comma = True

    def _headless(self, key: Node) -> Node:
        """An object whose opening bracket got lost, or the rest of one around this array."""
        self._note(self.at, "json.bracket", f"{key.scalar!r} is a key outside an object")
        node = Node(key.line, fields={}, damaged=True)
        self._members(node, self.at, key)
        return node

    def _object(self) -> Node:
        start, self.at = self.at, self.at + 1
        node = Node(self._line(start), fields={})
        self._members(node, start, None)
        return node

    def _members(self, node: Node, start: int, key: Node | None) -> None:
        into = node
        need_comma = False
        while True:
            char = self._peek()
            if key is not None:
                into = self._member(node, into, key)
                key, need_comma = None, True
            elif char == "":
                self._unclosed(node, start, "{")
                return
            elif char == "}":
                self.at += 1
                return
            elif char == "]" and "[" in self._open:
                self._unclosed(node, start, "{")
                return
            elif char == ",":
                self.at += 1
                need_comma = False
            elif char == '"':
                if need_comma:
                    self._note(self.at, "json.comma", "a comma is missing")
                key = self._string()
                into.damaged |= key.damaged
                if self._peek() != ":":
                    self._note(self.at, "json.key", f"no value for {key.scalar!r}", key.scalar)
                    into.damaged, key = True, None
            else:
                self._stray(node)

    def _stray(self, node: Node) -> None:
        node.damaged = True
        start = self.at
        value = self._value() if self.text[start] in "{[" else None
        if value is None:
            self._junk()
            return
        self._note(start, "json.bracket", "a value without a key: a bracket before it is lost")
        node.strays.append(value)

    def _member(self, node: Node, into: Node, key: Node) -> Node:
        """Read the value of `key` into `into`; returns the object that the next key belongs to."""
        self.at += 1  # the colon
        value = None if self._peek() in ("", ",", "}", "]", ":") else self._value()
        name = str(key.scalar)
        if value is None:
            into.damaged = True
            self._note(self.at, "json.key", f"no value for {name!r}", name)
            value = Node(key.line, damaged=True)
        fields = into.fields if into.fields is not None else {}
        if name == "id" and "id" in fields:
            self._note(self.at, "json.bracket", "two objects ran into each other at a second id")
            node.damaged = True
            fields = {}
            into = Node(key.line, fields=fields, damaged=True)
            node.strays.append(into)
        elif name in fields:
            lost = fields[name]
            self._note(
                self.at,
                "json.duplicate_key",
                f"{name!r} twice in one object; the last one counts",
                json.dumps({name: lost.plain}, ensure_ascii=False),
            )
            into.strays += [lost] if lost.fields is not None or lost.items is not None else []
        fields[name] = value
        return into

    def _unclosed(self, node: Node, start: int, bracket: str) -> Node:
        node.damaged = True
        where = "the end of the file" if self._ended() else f"line {self._line(self.at)}"
        self._note(start, "json.bracket", f"{bracket!r} is still open at {where}")
        return node


def without_surrogates(text: str) -> str:
    """`text` as it can be stored: an escape such as `\\ud800` alone is half a character."""
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
