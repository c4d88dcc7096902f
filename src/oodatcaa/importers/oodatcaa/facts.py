"""What the file says beside its tasks: the sprint, leases kept apart, counters, the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from oodatcaa.importers.findings import Findings, as_json, short
from oodatcaa.importers.oodatcaa.collect import Collected, leftovers, without_tasks
from oodatcaa.importers.oodatcaa.dialect import LeaseFacts, TaskReader, text_of
from oodatcaa.importers.oodatcaa.scan import Node
from oodatcaa.importers.oodatcaa.times import TimeFact, parse_moment, parse_ttl
from oodatcaa.importers.oodatcaa.words import TASK_LISTS, normal, word_set
from oodatcaa.importers.records import SprintFacts

CONTAINERS = word_set(
    "metadata meta summary statistics stats progress counters counts totals task_counts "
    "metrics sprint_metrics sprint_summary by_status by_type status_counts task_summary"
)
"""Objects that hold facts about the sprint and hand-kept counters."""
_LEASES = frozenset({"leases", "active_leases", "locks"})
_TTLS = frozenset({"lease_ttls", "lease_ttl", "ttls"})


@dataclass(slots=True)
class Counter:
    key: str
    value: float
    line: int
    counted: bool
    """It sits among counters, so a bare word such as `done` counts tasks."""


@dataclass(slots=True)
class Facts:
    sprint: SprintFacts
    counters: list[Counter] = field(default_factory=list)
    times: list[TimeFact] = field(default_factory=list)
    leases: dict[str, LeaseFacts] = field(default_factory=dict)
    """Upper-case task id -> lease, where leases are kept apart from the tasks."""
    unmapped: dict[str, tuple[Any, int]] = field(default_factory=dict)


class FactReader:
    """Reads everything but tasks. Of several sides of a conflict the first one that says
    something counts; the others are reported."""

    def __init__(self, findings: Findings, now: datetime) -> None:
        self.findings = findings
        self.now = now
        self.reader = TaskReader(findings)
        self.facts = Facts(SprintFacts())
        self._said: dict[str, tuple[str, str]] = {}
        """Fact -> (key, text) of who said it first."""
        self._values: dict[str, Any] = {}
        self._seen: dict[str, Any] = {}
        self._again: dict[str, int] = {}

    def read(self, sides: list[tuple[str, list[Node], Collected]]) -> Facts:
        for _, roots, collected in sides:
            for node in collected.lost:
                self._lost(node, collected.nodes)
            for root in roots:
                self._root(root, collected)
        times = [t for t in self.facts.times if t.moment.at <= self.now]
        created = [t.moment.at for t in times if t.role == "create"]
        updated = [t.moment.at for t in times if "updated" in t.key or "modified" in t.key]
        self._values["created_at"] = min(created, default=None)
        self._values["updated_at"] = max(updated, default=None)
        self.facts.sprint = SprintFacts.model_validate(self._values)
        return self.facts

    def _lost(self, node: Node, tasks: set[int]) -> None:
        self.findings.error(
            "task.unreadable",
            node.line,
            "an entry of a task list that is no task",
            as_json(without_tasks(node, tasks)),
        )

    def _root(self, root: Node, collected: Collected) -> None:
        if id(root) in collected.nodes:
            return
        if root.fields is None:
            self._rest("", root, collected.nodes)
            return
        for key, node in root.fields.items():
            self._field(key, node, collected.nodes, inside=False)
        for stray in root.strays:
            self._rest("", stray, collected.nodes)

    def _field(self, key: str, node: Node, tasks: set[int], *, inside: bool) -> None:
        name = normal(key)
        if self._said_before(key, node, tasks):
            return
        if name in TASK_LISTS and (node.items is not None or node.fields is not None):
            self._list(key, node, tasks)
        elif name in CONTAINERS and node.fields is not None:
            for inner, child in node.fields.items():
                self._field(inner, child, tasks, inside=True)
            for stray in node.strays:
                self._rest(key, stray, tasks)
        elif name in _LEASES and (node.fields or node.items):
            self._leases(node)
        elif name == "wip_limits" and node.fields is not None:
            self._limits(node)
        elif name in _TTLS and node.fields is not None:
            self._ttls(node)
        elif not self._sprint(name, node):
            self._number_or_rest(key, node, tasks, inside=inside)

    def _said_before(self, key: str, node: Node, tasks: set[int]) -> bool:
        """Both sides of a conflict have most fields; a field that differs is reported."""
        if normal(key) in TASK_LISTS | CONTAINERS:
            return False
        value = without_tasks(node, tasks)
        if key not in self._seen:
            self._seen[key] = value
            return False
        if self._seen[key] != value:
            self.findings.warning(
                "field.differs",
                node.line,
                f"{key} is said twice: {short(self._seen[key])} counts, not {short(value)}",
                as_json(value),
            )
        return True

    def _list(self, key: str, node: Node, tasks: set[int]) -> None:
        """Entries that are no tasks: names of tasks, or something else."""
        for _, child in node.children():
            if id(child) not in tasks and child.fields is None:
                left = leftovers(child, tasks)
                if left is not None:
                    self.findings.error(
                        "task.unreadable", child.line, f"{key} holds {short(left)}, no task", left
                    )

    def _leases(self, node: Node) -> None:
        entries: Iterator[tuple[str, Node]] = node.children()
        for key, child in entries:
            owner_of = key
            for name in ("task", "task_id", "id"):
                if child.fields and text_of(child.fields.get(name)):
                    owner_of = text_of(child.fields[name])
            lease = self.reader.lease(f"lease of {owner_of or '?'}", child)
            if lease is None:
                continue
            if owner_of:
                self.facts.leases[owner_of.upper()] = lease
            else:
                self.facts.unmapped["leases"] = (node.plain, node.line)

    def _limits(self, node: Node) -> None:
        limits = {}
        for role, child in (node.fields or {}).items():
            if isinstance(child.scalar, int) and not isinstance(child.scalar, bool):
                limits[role] = child.scalar
            elif child.plain is not None:
                self.facts.unmapped[f"wip_limits.{role}"] = (child.plain, child.line)
        self._values["wip_limits"] = limits

    def _ttls(self, node: Node) -> None:
        found: dict[str, float] = {}
        for role, child in (node.fields or {}).items():
            ttl = parse_ttl(child.plain, role, 60.0)
            if ttl is not None:
                found[role] = ttl[0]
            elif child.plain is not None:
                self.facts.unmapped[f"lease_ttls.{role}"] = (child.plain, child.line)
        self._values["lease_minutes"] = found

    def _sprint(self, name: str, node: Node) -> bool:
        """True when the field is a fact of the sprint record."""
        text = text_of(node)
        if name in ("sprint", "sprint_number", "number") and node.fields is not None:
            for key, child in node.fields.items():
                inner = {"id": "sprint_id", "name": "sprint_id"}.get(key, key)
                if not self._sprint(inner, child):
                    self._number_or_rest(f"{name}.{key}", child, set(), inside=False)
            return True
        if name in ("sprint", "sprint_number", "number") and re.fullmatch(r"\d{1,6}", text):
            return self._say("number", name, int(text), node)
        if not text:
            return node.items is None and node.fields is None and node.scalar is None
        if name in ("sprint", "sprint_id", "sprint_name", "name"):
            return self._say("name", name, text, node)
        if name in ("status", "sprint_status"):
            return self._say("status", name, text, node)
        if name in ("goal", "sprint_goal", "objective", "title"):
            return self._say("goal", name, text, node)
        return False

    def _say(self, fact: str, key: str, value: Any, node: Node) -> bool:
        known = self._values.setdefault(fact, value)
        first = self._said.setdefault(fact, (key, str(value)))
        if known != value and normal(str(known)) != normal(str(value)):
            severity = self.findings.info if fact == "goal" else self.findings.warning
            severity(
                "field.differs",
                node.line,
                f"{key} says {short(value)}, but {first[0]} says {short(first[1])}",
                str(value),
            )
        return True

    def _number_or_rest(self, key: str, node: Node, tasks: set[int], *, inside: bool) -> None:
        number = number_of(node.scalar)
        if number is None and inside and re.fullmatch(r"\d{1,9}", text_of(node)):
            number = float(text_of(node))
        counts = inside and number is not None and parse_moment(node.scalar) is None
        fact = None if counts else self.reader.time("the sprint", key, node)
        if fact is not None:
            self.facts.times.append(fact)
            return
        if number is not None:
            self.facts.counters.append(Counter(key, number, node.line, inside))
            return
        self._rest(key, node, tasks)

    def _rest(self, key: str, node: Node, tasks: set[int]) -> None:
        left = leftovers(node, tasks)
        if left is not None and left != "":
            name = key or "(without a key)"
            while name in self.facts.unmapped:
                # Counted, not tried one by one: a file of nothing but damage has thousands.
                self._again[key] = self._again.get(key, 1) + 1
                name = f"{key or '(without a key)'} ({self._again[key]})"
            self.facts.unmapped[name] = (left, node.line)


def number_of(value: Any) -> float | None:
    """A number, or a percentage written as text; None for everything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float) and abs(value) < 1e12:
        return float(value)
    if isinstance(value, str) and re.fullmatch(r"~?\d{1,9}(?:\.\d{1,6})?\s*%", value.strip()):
        return float(value.strip(" ~%"))
    return None
