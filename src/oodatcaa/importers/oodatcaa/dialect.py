"""One task in the words of its dialect: synonyms are resolved, nothing is judged yet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from oodatcaa.importers.findings import Findings, as_json, short
from oodatcaa.importers.oodatcaa.collect import WITHOUT_KEY, Found, looks_like_task
from oodatcaa.importers.oodatcaa.scan import Node
from oodatcaa.importers.oodatcaa.times import TimeFact, parse_minutes, parse_moment, stage_of
from oodatcaa.importers.oodatcaa.words import (
    ABSENT,
    FIELD_OF,
    HISTORY,
    ROLE_WORDS,
    SYNONYMS,
    normal,
)


@dataclass(slots=True)
class LeaseFacts:
    owner: str
    role: str
    line: int
    ttl_key: str = ""
    ttl: Any = None
    times: list[TimeFact] = field(default_factory=list)
    raw: Any = None


@dataclass(slots=True, eq=False)
class RawTask:
    found: Found
    title: str = ""
    type: str = ""
    status: str = ""
    """The normalised word; "" = the file has none."""
    parent: str = ""
    depends: list[str] = field(default_factory=list)
    steps: tuple[int, ...] = ()
    owner: str = ""
    lease: LeaseFacts | None = None
    minutes: int | None = None
    size: str = ""
    goal: str = ""
    reason: str = ""
    branch: str = ""
    commit: str = ""
    adapt_round: int = 0
    references: list[str] = field(default_factory=list)
    """Ids that a list of strings named as its subtasks."""
    times: list[TimeFact] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    """(field, text) of the history."""
    unmapped: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, tuple[int | float, int]] = field(default_factory=dict)
    """Unmapped numbers with their lines: they may be hand-kept counters."""

    @property
    def id(self) -> str:
        return self.found.id

    @property
    def line(self) -> int:
        return self.found.line

    @property
    def label(self) -> str:
        return self.id or f"the task {self.title!r}"

    def all_times(self) -> Iterator[TimeFact]:
        yield from self.times
        if self.lease is not None:
            yield from self.lease.times


def text_of(node: Node | None) -> str:
    """A scalar as text; "" for every spelling of null and for lists and objects."""
    if node is None or node.items is not None or node.fields is not None:
        return ""
    if node.scalar is None or isinstance(node.scalar, bool):
        return ""
    text = str(node.scalar).strip()
    return "" if text.lower() in ABSENT else text


def is_absent(value: Any) -> bool:
    """Null, or a spelling of it."""
    return value is None or (isinstance(value, str) and value.strip().lower() in ABSENT)


class TaskReader:
    """Reads found tasks; what is odd about a field goes to `findings`."""

    def __init__(self, findings: Findings, *, damaged: bool = False) -> None:
        self.findings = findings
        self.damaged = damaged

    def read(self, found: Found) -> RawTask:
        task = RawTask(found)
        fields = found.node.fields or {}
        task.title = self._text(task, fields, "title")
        task.type = normal(self._text(task, fields, "type"))
        task.status = normal(self._text(task, fields, "status"))
        task.parent = self._text(task, fields, "parent")
        task.size = normal(self._text(task, fields, "size"))
        task.goal = self._text(task, fields, "goal", differ=False)
        task.reason = self._text(task, fields, "reason", differ=False)
        task.commit = self._text(task, fields, "commit")
        self._depends(task, fields)
        self._steps(task, fields)
        self._numbers(task, fields)
        for key, node in fields.items():
            named = key == "id" or (key in ("task_id", "key") and text_of(node) == found.id)
            if key not in FIELD_OF and not named:
                self._other(task, key, node)
        if WITHOUT_KEY in found.content:
            task.unmapped[WITHOUT_KEY] = found.content[WITHOUT_KEY]
        owner = self._text(task, fields, "owner", differ=False)
        if owner and task.owner and owner != task.owner:
            task.notes.append(("owner", owner))
        task.owner = task.owner or owner
        return task

    def _values(self, fields: dict[str, Node], name: str) -> list[tuple[str, Node]]:
        return [(key, fields[key]) for key in SYNONYMS[name] if key in fields]

    def _text(
        self, task: RawTask, fields: dict[str, Node], name: str, *, differ: bool = True
    ) -> str:
        """The first spelling that has a value; other values are reported or noted."""
        chosen = ""
        for key, node in self._values(fields, name):
            text = text_of(node)
            if not text:
                if node.items or node.fields or isinstance(node.scalar, bool):
                    task.unmapped[key] = node.plain
                continue
            if not isinstance(node.scalar, str) and name != "size":
                self.findings.info(
                    "field.type", node.line, f"{task.label}: {key} is {short(node.plain)}, no text"
                )
            if not chosen:
                chosen = text
            elif normal(text) != normal(chosen):
                if differ:
                    self.findings.warning(
                        "field.differs",
                        node.line,
                        f"{task.label}: {key} says {short(text)}, but {name} is {short(chosen)}",
                        text,
                    )
                task.notes.append((key, text))
        return chosen

    def _depends(self, task: RawTask, fields: dict[str, Node]) -> None:
        seen: dict[str, tuple[str, ...]] = {}
        for key, node in self._values(fields, "depends"):
            ids = tuple(self._ids(task, key, node))
            if ids or node.items is not None:
                seen[key] = ids
            task.depends += [item for item in ids if item not in task.depends]
        if len({frozenset(ids) for ids in seen.values()}) > 1:
            self.findings.warning(
                "field.differs",
                task.line,
                f"{task.label}: {' and '.join(seen)} name different tasks; both are kept",
                seen,
            )

    def _ids(self, task: RawTask, key: str, node: Node) -> Iterator[str]:
        """Ids out of a list, a comma-separated text, or objects with an id."""
        for item in node.items if node.items is not None else [node]:
            fields = item.fields or {}
            plain = {name: child.scalar for name, child in fields.items()}
            if self.damaged and "title" in plain and looks_like_task(plain):
                continue  # a whole task, swallowed by damage; it is recovered by itself
            text = text_of(fields.get("id", item))
            if text:
                parts = [part.strip() for part in re.split(r"[,;]|\s+and\s+", text)]
                yield from (part for part in parts if part and part.lower() not in ABSENT)
            if len(fields) > 1 or (not text and not is_absent(item.plain)):
                task.unmapped[key] = node.plain

    def _steps(self, task: RawTask, fields: dict[str, Node]) -> None:
        seen: dict[str, tuple[int, ...]] = {}
        for key, node in self._values(fields, "steps"):
            if node.scalar is None and not node.items and not node.fields:
                continue
            numbers = parse_steps(node.plain)
            if numbers is None:
                task.notes.append((key, as_json(node.plain)))
                continue
            seen[key] = numbers
            if node.items and any(item.fields is not None for item in node.items):
                task.notes.append((key, as_json(node.plain)))
        if len(set(seen.values())) > 1:
            self.findings.warning(
                "field.differs", task.line, f"{task.label}: {' and '.join(seen)} differ", seen
            )
        task.steps = next(iter(seen.values()), ())

    def _numbers(self, task: RawTask, fields: dict[str, Node]) -> None:
        seen: dict[str, int] = {}
        for key, node in self._values(fields, "estimate"):
            minutes = parse_minutes(node.plain, unit=60 if key.endswith("hours") else 1)
            if minutes is None and (text_of(node) or node.items or node.fields):
                self.findings.warning(
                    "estimate.unreadable",
                    node.line,
                    f"{task.label}: {key} {short(node.plain)} is no duration",
                    node.plain,
                )
            elif minutes is not None:
                seen[key] = minutes
        if len(set(seen.values())) > 1:
            self.findings.warning(
                "field.differs", task.line, f"{task.label}: estimates differ", seen
            )
        task.minutes = next(iter(seen.values()), None)
        for key, node in self._values(fields, "adapt_round"):
            value = node.plain
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1000:
                task.adapt_round = max(task.adapt_round, value)
            elif value is not None:
                task.notes.append((key, short(value, 10_000)))

    def _other(self, task: RawTask, key: str, node: Node) -> None:
        if key in ("subtasks", "sub_tasks", "children"):
            self._references(task, key, node)
        elif key == "lease":
            task.lease = self.lease(task.label, node)
            if task.lease is not None:
                task.owner = task.lease.owner
        elif key in ("commits", "branch"):
            self._git(task, key, node)
        elif key in task.found.content and not self._time(task, key, node):
            self._history(task, key, node)

    def _references(self, task: RawTask, key: str, node: Node) -> None:
        """A list of ids names its parts; tasks in it are found by themselves."""
        if isinstance(node.scalar, int) and not isinstance(node.scalar, bool):
            task.numbers[key] = (node.scalar, node.line)
        elif text_of(node):
            task.references += list(self._ids(task, key, node))
        elif node.items is not None:
            task.references += [text_of(item) for item in node.items if text_of(item)]
            if any(item.items is not None for item in node.items):
                task.unmapped[key] = node.plain
        elif node.fields and key in task.found.content:
            task.unmapped[key] = task.found.content[key]

    def _git(self, task: RawTask, key: str, node: Node) -> None:
        if key == "branch":
            task.branch = text_of(node)
            if not task.branch and (node.items or node.fields):
                task.unmapped[key] = node.plain
            return
        if isinstance(node.scalar, int | float) and not isinstance(node.scalar, bool):
            task.notes.append((key, f"{node.scalar} commits (a count, not their names)"))
            return
        names = [text_of(item) for item in node.items or [node]]
        names = [name for name in names if name]
        if names:
            task.notes.append((key, ", ".join(names)))
            task.commit = task.commit or names[-1]
        if len(names) < len(node.items or node.fields or ()):
            task.unmapped[key] = node.plain

    def _time(self, task: RawTask, key: str, node: Node) -> bool:
        """True when the field was dealt with as a time."""
        facts = self.time(task.label, key, node)
        if facts is not None:
            task.times.append(facts)
        return facts is not None

    def time(self, label: str, key: str, node: Node) -> TimeFact | None:
        """The time in a field, by its name or by its value; an unreadable one is reported."""
        named = stage_of(key)
        moment = parse_moment(node.scalar)
        if named is None and (moment is None or not isinstance(node.scalar, str)):
            return None
        if moment is None:
            if text_of(node) and not HISTORY.fullmatch(key):
                self.findings.warning(
                    "time.unreadable",
                    node.line,
                    f"{label}: {key} {short(node.scalar)} is no date or time",
                    node.plain,
                )
            return None
        stage, role = named or ("", "")
        return TimeFact(key, node.line, str(node.scalar), stage, role, moment)

    def _history(self, task: RawTask, key: str, node: Node) -> None:
        value = task.found.content[key]
        if value is None or value in ("", [], {}):
            return
        if isinstance(value, int | float) and not isinstance(value, bool):
            task.numbers[key] = (value, node.line)
        if not HISTORY.fullmatch(key.lower()):
            task.unmapped[key] = value
        elif isinstance(value, list):
            task.notes += [(key, v if isinstance(v, str) else as_json(v)) for v in value]
        else:
            task.notes.append((key, value if isinstance(value, str) else as_json(value)))

    def lease(self, label: str, node: Node) -> LeaseFacts | None:
        """An embedded lease: an object, or just its owner's name. None = there is none."""
        if node.fields is None:
            owner = text_of(node)
            if not owner and (node.items or node.scalar):
                self.findings.warning(
                    "lease.unreadable", node.line, f"{label}: unreadable lease", node.plain
                )
            return LeaseFacts(owner, role_of(owner), node.line, raw=node.plain) if owner else None
        if all(child.plain in (None, "", [], {}) for child in node.fields.values()):
            return None
        names = [
            text_of(node.fields[key])
            for key in ("owner", "holder", "agent_id", "name", "agent", "claimed_by")
            if key in node.fields
        ]
        names = [name for name in names if name]
        lease = LeaseFacts(names[0] if names else "", "", node.line, raw=node.plain)
        lease.role = next((role for role in map(role_of, names) if role), "")
        for key, child in node.fields.items():
            if key.startswith("ttl") or key in ("duration", "duration_minutes", "timeout"):
                lease.ttl_key, lease.ttl = key, child.plain
            else:
                fact = self.time(f"{label}: lease", key, child)
                lease.times += [fact] if fact else []
        return lease


def role_of(owner: str) -> str:
    """The role that a name speaks of: `agent-builder-B2` -> builder."""
    words = re.split(r"[^a-z]+", owner.lower())
    return next((ROLE_WORDS[word] for word in words if word in ROLE_WORDS), "")


def parse_steps(value: Any) -> tuple[int, ...] | None:
    """`3`, `"1-4"`, `"Step 2, 5"`, `[1, 2]`, `[{"step": 1}]`; None = no numbers can be made out."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return (value,) if 0 < value < 1000 else None
    if isinstance(value, str):
        text = re.sub(r"(?i)\b(?:plan|steps?|and)\b|[#,;&]", " ", value[:400])
        text = re.sub(r" ?(?:-|–|to) ?", "-", " ".join(text.split()))
        numbers: list[int] = []
        for piece in text.split():
            match = re.fullmatch(r"(\d{1,3})(?:-(\d{1,3}))?", piece)
            if match is None:
                return None
            numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
        return tuple(dict.fromkeys(n for n in numbers if n > 0)) or None
    if isinstance(value, list) and value:
        parts: list[int] = []
        for item in value:
            if isinstance(item, dict):
                item = next((item[k] for k in ("number", "step", "id") if k in item), None)
            steps = parse_steps(item)
            if steps is None:
                return None
            parts += steps
        return tuple(dict.fromkeys(parts))
    return None
