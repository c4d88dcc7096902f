"""Dependencies between placed tasks: unknown ones, ones on oneself, and cycles."""

from __future__ import annotations

from dataclasses import dataclass, field

from oodatcaa.importers.findings import Findings
from oodatcaa.importers.oodatcaa.identity import Placed, Placement


@dataclass(slots=True)
class Links:
    """What each task (by new id) waits for, without a cycle, and who needs a person's decision."""

    depends: dict[str, list[str]] = field(default_factory=dict)
    doubts: dict[str, list[str]] = field(default_factory=dict)

    def doubt(self, task: str, why: str) -> None:
        self.doubts.setdefault(task, []).append(why)


def link(placement: Placement, findings: Findings) -> Links:
    links = Links()
    for task in placement.all():
        links.depends[task.id] = _known(task, placement, links, findings)
    _check_references(placement, findings)
    _cut_cycles(placement, links, findings)
    return links


def _known(task: Placed, placement: Placement, links: Links, findings: Findings) -> list[str]:
    """The dependencies that can be kept; every other one is reported."""
    kept: list[str] = []
    for old in task.raw.depends if task.raw else ():
        other = placement.find(old)
        if other is None:
            findings.error(
                "dependency.unknown",
                task.line,
                f"{task.old} depends on {old}, not in the file",
                old,
            )
            links.doubt(task.id, f"the old queue says that it depends on {old}, which is unknown")
        elif other is task:
            findings.error("dependency.cyclic", task.line, f"{task.old} depends on itself")
        elif task.story == other.id or other.story == task.id:
            what = "its own story" if task.story else "its own subtask"
            findings.warning(
                "dependency.own", task.line, f"{task.old} depends on {what} {old}; left out"
            )
        elif other.id not in kept:
            kept.append(other.id)
    return kept


def _check_references(placement: Placement, findings: Findings) -> None:
    for task in placement.all():
        for old in task.raw.references if task.raw else ():
            part = placement.find(old)
            if part is None:
                findings.error(
                    "subtask.missing", task.line, f"{task.old} lists {old}, not in the file", old
                )
            elif part.story != (task.story or task.id):
                findings.warning(
                    "parent.differs",
                    task.line,
                    f"{task.old} lists {old}, which belongs to {part.story or 'no story'}",
                )


def _cut_cycles(placement: Placement, links: Links, findings: Findings) -> None:
    """Report every knot of tasks that wait for each other, and leave out what goes backwards.

    A story ends after its subtasks, and a subtask starts after what its story depends on.
    """
    old = {task.id: task.old for task in placement.all()}
    line = {task.id: task.line for task in placement.all()}
    graph = _waits(placement, links.depends)
    place = _file_order(placement)
    first = {
        s.id: min([place[c.id] for c in s.children] + [place[s.id]]) for s in placement.stories
    }
    for knot in knots(graph):
        members = set(knot)
        names = sorted((old[m] for m in knot), key=str)
        cut = []
        for member in knot:
            limit = first.get(member, place[member])
            for needed in list(links.depends[member]):
                if needed in members and place[needed] >= limit:
                    links.depends[member].remove(needed)
                    cut.append(f"{old[member]} on {old[needed]}")
            links.doubt(member, f"the old queue has a circle: {', '.join(names)}")
        findings.error(
            "dependency.cyclic",
            min(line[m] for m in knot),
            f"{', '.join(names)} wait for each other; left out: {', '.join(sorted(cut))}",
            sorted(cut),
        )


def _waits(placement: Placement, depends: dict[str, list[str]]) -> dict[str, list[str]]:
    graph = {task: list(needed) for task, needed in depends.items()}
    for story in placement.stories:
        graph[story.id] += [child.id for child in story.children]
        for child in story.children:
            graph[child.id] += depends[story.id]
    return graph


def _file_order(placement: Placement) -> dict[str, int]:
    """Subtasks in the file's order, each story after its last subtask."""
    order: dict[str, int] = {}
    lines = sorted(
        (max([story.line, *(child.line for child in story.children)]), number)
        for number, story in enumerate(placement.stories)
    )
    for _, number in lines:
        story = placement.stories[number]
        for task in (*sorted(story.children, key=lambda child: child.line), story):
            order[task.id] = len(order)
    return order


def knots(graph: dict[str, list[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node (Tarjan 1972, without recursion)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    on_stack: set[str] = set()
    found: list[list[str]] = []
    for root in graph:
        if root in index:
            continue
        work = [(root, 0)]
        while work:
            node, at = work.pop()
            if at == 0:
                index[node] = low[node] = len(index)
                stack.append(node)
                on_stack.add(node)
            for number in range(at, len(graph[node])):
                other = graph[node][number]
                if other not in index:
                    work += [(node, number + 1), (other, 0)]
                    break
                if other in on_stack:
                    low[node] = min(low[node], index[other])
            else:
                _close(node, index, low, stack, on_stack, found)
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
    return found


def _close(
    node: str,
    index: dict[str, int],
    low: dict[str, int],
    stack: list[str],
    on_stack: set[str],
    found: list[list[str]],
) -> None:
    if low[node] != index[node]:
        return
    knot: list[str] = []
    while True:
        member = stack.pop()
        on_stack.discard(member)
        knot.append(member)
        if member == node:
            break
    if len(knot) > 1:
        found.append(knot[::-1])
