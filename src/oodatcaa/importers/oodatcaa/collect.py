"""Finds every task in what was read, wherever it sits, and says which side of a conflict has it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from oodatcaa.importers.oodatcaa.scan import Node
from oodatcaa.importers.oodatcaa.words import ID, SYNONYMS, TASK_LISTS, word_set

WITHOUT_KEY = "<without a key>"
NESTING = frozenset({"subtasks", "sub_tasks", "children", "tasks", "stories"})
"""A task anywhere else inside another one got there by damage and is no part of it."""
LINKS = frozenset(SYNONYMS["depends"])
"""Lists whose objects name tasks and are none."""
_ID_KEYS = ("id", "task_id", "story_id", "key")
_TASK_KEYS = word_set(
    "status state title name type parent parent_task plan_step plan_steps depends_on "
    "dependencies lease subtasks"
)


def looks_like_task(value: dict[str, Any]) -> bool:
    """An object with an id of the old process's form and at least one field that tasks have."""
    text = value.get("id")
    return isinstance(text, str) and bool(ID.fullmatch(text.strip())) and _has_task_field(value)


def _has_task_field(value: dict[str, Any]) -> bool:
    return not _TASK_KEYS.isdisjoint(value)


@dataclass(slots=True, eq=False)
class Found:
    """A task as it stands in the file. `id` is "" when it has none."""

    id: str
    node: Node
    line: int
    inside: str = ""
    """The id of the task it is nested in."""
    under: str = ""
    """The key of the list it was found in."""
    content: dict[str, Any] = field(default_factory=dict)
    """Its fields without the tasks nested in it."""


@dataclass(slots=True)
class Collected:
    tasks: list[Found] = field(default_factory=list)
    nodes: set[int] = field(default_factory=set)
    """`id()` of every node that is a task."""
    lost: list[Node] = field(default_factory=list)
    """Entries of task lists that are no tasks."""


def collect(roots: list[Node], *, damaged: bool = False) -> Collected:
    """Every task below `roots`, in the file's order.

    In a `damaged` file an object in a list of dependencies may be a task that ran into it.
    """
    found = Collected()
    front: list[tuple[Node, str, str, str]] = [(root, "", "", "") for root in reversed(roots)]
    while front:
        node, key, entry, inside = front.pop()
        task_id = _task_id(node, key, entry)
        if task_id is not None:
            found.tasks.append(Found(task_id, node, node.line, inside, key))
            found.nodes.add(id(node))
        elif key in TASK_LISTS and node.fields and (entry or not _is_map(node)):
            found.lost.append(node)
        below = []
        for name, child in node.children():
            is_entry = node.items is not None or (key in TASK_LISTS and task_id is None)
            if name in LINKS and damaged:
                name = ""  # whole tasks may have run into this list
            within = task_id if task_id and name in NESTING else inside
            below.append((child, key if is_entry else name, name if is_entry else "", within))
        front += reversed(below)
    for task in found.tasks:
        task.content = {
            name: without_tasks(child, found.nodes)
            for name, child in (task.node.fields or {}).items()
            if not _only_tasks(child, found.nodes)
        }
        strays = [leftovers(stray, found.nodes) for stray in task.node.strays]
        if any(stray is not None for stray in strays):
            task.content[WITHOUT_KEY] = [stray for stray in strays if stray is not None]
    return found


def _task_id(node: Node, key: str, entry: str) -> str | None:
    """The id of the task that `node` is, "" for a task without one, None when it is no task.

    `key` is the list it sits in, `entry` its name when that list is an object keyed by id.
    """
    if node.fields is None or key in LINKS:
        return None
    if key not in TASK_LISTS:
        fields = {name: child.scalar for name, child in node.fields.items()}
        return fields["id"].strip() if looks_like_task(fields) else None
    for name in _ID_KEYS:
        value = node.fields[name].scalar if name in node.fields else None
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip():
            return str(value).strip()
    if entry and _has_task_field(node.fields):
        return entry.strip()
    return "" if {"title", "status"} & node.fields.keys() and not _is_map(node) else None


def _is_map(node: Node) -> bool:
    """An object whose values are tasks: `"tasks": {"T001": {…}}`."""
    values = list((node.fields or {}).values())
    return bool(values) and all(child.fields is not None for child in values)


def without_tasks(node: Node, tasks: set[int]) -> Any:
    """`node` as plain JSON, with `<task>` where a task was: those are reported by themselves."""
    if id(node) in tasks:
        return "<task>"
    if node.fields is not None:
        plain: dict[str, Any] = {n: without_tasks(c, tasks) for n, c in node.fields.items()}
        strays = [without_tasks(stray, tasks) for stray in node.strays]
        return {**plain, WITHOUT_KEY: strays} if strays else plain
    if node.items is not None:
        return [without_tasks(item, tasks) for item in node.items]
    return node.scalar


def _only_tasks(node: Node, tasks: set[int]) -> bool:
    """Nothing is in `node` but tasks."""
    if id(node) in tasks:
        return True
    if node.fields is None and node.items is None:
        return False
    children = [child for _, child in node.children()]
    return bool(children) and all(_only_tasks(child, tasks) for child in children)


def leftovers(node: Node, tasks: set[int]) -> Any | None:
    """What `node` holds beside tasks, as plain JSON; None when there is nothing."""
    if _only_tasks(node, tasks) or (not node.items and node.items is not None):
        return None
    if node.fields is not None and not node.fields and not node.strays:
        return None
    if node.fields is None and node.items is None and node.scalar is None:
        return None
    return without_tasks(node, tasks)
