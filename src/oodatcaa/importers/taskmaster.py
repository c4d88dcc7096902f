"""task-master's tasks.json: one list of tasks, or one list under each tag.

A task becomes a story, its subtasks the story's steps. What is done there is not done again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from oodatcaa.domain.draft import DraftStep, DraftStory
from oodatcaa.domain.source import Leftover
from oodatcaa.domain.task import slugify
from oodatcaa.importers.findings import Findings, as_json, short
from oodatcaa.importers.oodatcaa.scan import Node, scan
from oodatcaa.importers.records import Imported, ImportKind
from oodatcaa.importers.tables import (
    MOST_TASKS,
    Over,
    criteria,
    int_of,
    list_of,
    parsed,
    report_graph,
    report_paths,
    text_of,
    with_finished,
)

DEFAULT_TAG = "master"
DONE = frozenset({"done", "completed", "complete", "closed"})
GONE = frozenset({"cancelled", "canceled", "removed"})
OPEN = frozenset({"pending", "in-progress", "in_progress", "review", "blocked", "todo", "open"})
PRIORITIES = {"critical": 0, "high": 1, "medium": 2, "low": 3}
_FIELDS = frozenset(
    {"id", "title", "description", "status", "dependencies", "priority", "details"}
    | {"testStrategy", "subtasks"}
)
_PART_FIELDS = _FIELDS - {"priority", "subtasks"}
"""Of a subtask: one of its own, and a priority, have no counterpart."""
_TELLING = ("testStrategy", "details", "dependencies", "priority", "description")
_OTHERS = ("parent_task", "plan_step", "plan_steps", "agent", "depends_on", "lease")


def looks_like_taskmaster(text: str) -> bool:
    value = parsed(text)
    if not isinstance(value, dict):
        return False
    lists = [value["tasks"]] if isinstance(value.get("tasks"), list) else []
    lists += [
        item["tasks"]
        for item in value.values()
        if isinstance(item, dict) and isinstance(item.get("tasks"), list)
    ]
    return any(_is_task(task) for tasks in lists for task in tasks[:3])


def _is_task(task: object) -> bool:
    if not isinstance(task, dict) or "title" not in task or any(key in task for key in _OTHERS):
        return False
    plain_id = int_of(task.get("id")) is not None
    told = sum(key in task for key in _TELLING)
    return (plain_id and told >= 1) or ("testStrategy" in task and told >= 2)


@dataclass
class _Item:
    tag: str
    id: str
    line: int
    node: Node
    fields: dict[str, Any]

    @property
    def key(self) -> str:
        return self.id if self.tag == DEFAULT_TAG else f"{self.tag}/{self.id}"


@dataclass
class _Reading:
    findings: Findings
    drafts: list[DraftStory] = field(default_factory=list)
    over: dict[str, Over] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)


def read_taskmaster(text: str, *, source: str) -> Imported:
    """Every unfinished task as a draft, and everything odd about it. Never raises."""
    findings = Findings(source)
    result = scan(text, lambda value: "id" in value and "title" in value)
    for damage in result.damage:
        findings.error(damage.code, damage.line, damage.message, damage.content)
    items = _items(result.roots, findings)
    if not items:
        findings.error("taskmaster.no_tasks", None, "no task was found in this file")
    if len(items) > MOST_TASKS:
        left = len(items) - MOST_TASKS
        findings.error(
            "taskmaster.too_many",
            items[MOST_TASKS].line,
            f"{len(items):,} tasks; the last {left:,} are not read",
        )
    reading = _Reading(findings)
    seen: set[str] = set()
    for item in items[:MOST_TASKS]:
        if item.key in seen:
            findings.error(
                "taskmaster.duplicate",
                item.line,
                f"a second task {item.key}; the first counts",
                item.fields,
            )
            continue
        seen.add(item.key)
        reading.lines[item.key] = item.line
        _take(reading, item)
    report_graph(reading.drafts, reading.lines, frozenset(reading.over), findings)
    return Imported(
        kind=ImportKind.TASKMASTER,
        source=source,
        drafts=with_finished(reading.drafts, reading.over),
        done=tuple(reading.over),
        past=tuple(str(item) for item in reading.over.values()),
        findings=findings.all(),
    )


def _items(roots: list[Node], findings: Findings) -> list[_Item]:
    found: list[_Item] = []
    for root in roots:
        fields = root.fields or {}
        for name, node in fields.items():
            inner = (node.fields or {}).get("tasks")
            if name == "tasks" and node.items is not None:
                found += _list(DEFAULT_TAG, node, findings)
            elif inner is not None and inner.items is not None:
                found += _list(name, inner, findings)
                rest = {key: part.plain for key, part in (node.fields or {}).items()}
                rest.pop("tasks")
                if rest:
                    findings.info("plan.unmapped", node.line, f"of the tag {name}", rest)
            else:
                findings.info("plan.unmapped", node.line, f"{short(name)} is no task", node.plain)
        if root.items is not None:
            found += _list(DEFAULT_TAG, root, findings)
    return found


def _list(tag: str, node: Node, findings: Findings) -> list[_Item]:
    found = []
    for item in node.items or ():
        plain = item.plain
        name = text_of(plain.get("id")) if isinstance(plain, dict) else ""
        if not name:
            findings.error("taskmaster.no_id", item.line, "a task without an id", plain)
        else:
            found.append(_Item(tag, name, item.line, item, plain))
    return found


def _take(reading: _Reading, item: _Item) -> None:
    findings, status = reading.findings, text_of(item.fields.get("status")).lower() or "pending"
    if status in DONE or status in GONE:
        over = _over(item, status)
        reading.over[item.key] = over
        if status in DONE:
            _report_open_subtasks(findings, item)
        findings.info(
            "plan.finished",
            item.line,
            f"task {item.key} {short(over.title)} is {status} there; not done again",
            item.fields,
        )
        return
    if status == "deferred":
        findings.warning("taskmaster.deferred", item.line, f"task {item.key} was deferred there")
    elif status not in OPEN:
        findings.warning(
            "status.unknown", item.line, f"task {item.key}: {short(status)!r} is read as pending"
        )
    reading.drafts.append(_draft(findings, item))


def _over(item: _Item, status: str) -> Over:
    """A finished task with what its subtasks were called."""
    parts = [part for part in list_of(item.fields.get("subtasks")) if isinstance(part, dict)]
    names = ", ".join(text_of(part.get("title")) for part in parts)
    words = [text_of(item.fields.get("description")), names and f"subtasks: {names}"]
    return Over(
        key=item.key,
        title=text_of(item.fields.get("title")) or "without a title",
        status=status,
        what="; ".join(word for word in words if word),
        line=item.line,
        fields=item.fields,
    )


def _report_open_subtasks(findings: Findings, item: _Item) -> None:
    for part in list_of(item.fields.get("subtasks")):
        if isinstance(part, dict) and text_of(part.get("status")).lower() not in DONE | GONE:
            findings.warning(
                "taskmaster.contradiction",
                item.line,
                f"task {item.key} is done, but its subtask {text_of(part.get('id'))} is not",
            )


def _draft(findings: Findings, item: _Item) -> DraftStory:
    fields = item.fields
    title = text_of(fields.get("title"))
    if not title:
        findings.warning("plan.no_name", item.line, f"task {item.key} has no title")
    gates, words = criteria(text_of(fields.get("testStrategy")), "AC")
    leftovers = [
        Leftover(
            what=key or "a field without a name", place=f"line {item.line}", text=as_json(value)
        )
        for key, value in fields.items()
        if key not in _FIELDS
    ]
    priority = text_of(fields.get("priority")).lower()
    if priority and priority not in PRIORITIES:
        findings.warning(
            "priority.unknown", item.line, f"task {item.key}: {short(priority)!r} is no priority"
        )
        leftovers.append(Leftover(what="priority", place=f"line {item.line}", text=priority))
    status = text_of(fields.get("status")).lower()
    if status not in ("", "pending", "todo", "open"):
        leftovers.append(Leftover(what="status there", place=f"line {item.line}", text=status))
    steps = _steps(findings, item, leftovers)
    report_paths(gates, item.line, findings)
    return DraftStory(
        key=item.key,
        title=short(title or f"Task {item.key}", 100),
        slug=slugify(title or f"task {item.key}"),
        goal="\n\n".join(
            text
            for text in (text_of(fields.get("description")), text_of(fields.get("details")))
            if text
        ),
        phase="" if item.tag == DEFAULT_TAG else item.tag,
        priority=PRIORITIES.get(priority),
        depends_on=_needs(findings, item),
        steps=steps,
        gates=tuple(gates),
        statements=tuple(words),
        leftovers=tuple(leftovers),
    )


def _needs(findings: Findings, item: _Item) -> tuple[str, ...]:
    """Keys of tasks; `3.1`, a subtask of another task, means that task."""
    found: list[str] = []
    for value in list_of(item.fields.get("dependencies")):
        name = text_of(value)
        task = name.split(".")[0]
        if not name:
            findings.warning("dependency.unreadable", item.line, f"of task {item.key}", value)
        elif task == item.id:
            findings.error(
                "dependency.circle", item.line, f"task {item.key} depends on itself ({name})"
            )
        else:
            found.append(task if item.tag == DEFAULT_TAG else f"{item.tag}/{task}")
    return tuple(dict.fromkeys(found))


def _steps(findings: Findings, item: _Item, leftovers: list[Leftover]) -> tuple[DraftStep, ...]:
    """Subtasks in the order of their own dependencies; one step for a task without any."""
    parts = [part for part in list_of(item.fields.get("subtasks")) if isinstance(part, dict)]
    named = {text_of(part.get("id")) or str(n): part for n, part in enumerate(parts, 1)}
    if len(named) < len(parts):
        findings.error("taskmaster.duplicate", item.line, f"task {item.key}: subtasks share an id")
    order = _ordered(findings, item, named)
    steps: list[DraftStep] = []
    for name in order:
        part = named[name]
        status = text_of(part.get("status")).lower()
        text = as_json(part)
        place = f"line {item.line}"
        if status in DONE | GONE:
            leftovers.append(Leftover(what=f"subtask {name} is {status}", place=place, text=text))
            continue
        rest = {key: value for key, value in part.items() if key not in _PART_FIELDS and value}
        if rest:
            leftovers.append(
                Leftover(what=f"subtask {name}: more fields", place=place, text=as_json(rest))
            )
        words = [text_of(part.get(key)) for key in ("description", "details")]
        steps.append(
            DraftStep(
                number=len(steps) + 1,
                title=short(text_of(part.get("title")) or f"Subtask {name}", 200),
                action="\n\n".join(word for word in words if word),
                done=text_of(part.get("testStrategy")),
            )
        )
    if not steps:
        title = text_of(item.fields.get("title")) or f"Task {item.key}"
        action = text_of(item.fields.get("details")) or text_of(item.fields.get("description"))
        steps.append(DraftStep(number=1, title=short(title, 200), action=action))
    return tuple(steps)


def _ordered(findings: Findings, item: _Item, named: dict[str, Any]) -> list[str]:
    """Subtask names, each after those it depends on; the file's order decides the rest."""
    needs = {
        name: [_sibling(item, need) for need in list_of(part.get("dependencies"))]
        for name, part in named.items()
    }
    for name, wanted in needs.items():
        for need in wanted:
            if need not in named and re.fullmatch(r"\w+", need):
                findings.warning(
                    "dependency.unknown",
                    item.line,
                    f"subtask {item.key}.{name} depends on {need}, which is no subtask beside it",
                )
    order: list[str] = []
    left = dict.fromkeys(named)
    while left:
        free = next(
            (n for n in left if not any(need in left and need != n for need in needs[n])), ""
        )
        if not free:
            free = next(iter(left))
            findings.error(
                "dependency.circle", item.line, f"the subtasks of task {item.key} wait in a circle"
            )
        order.append(free)
        del left[free]
    return order


def _sibling(item: _Item, need: object) -> str:
    """`2` and `5.2`, inside task 5, are both its subtask 2."""
    name = text_of(need)
    return name.removeprefix(f"{item.id}.")
