"""Queues of the process that this project grew out of, in all their dialects and states of damage.

`read_queue` recovers every task outside damaged places, maps it to the board, and reports every
contradiction. It never raises; what it could not make sense of is in the findings.
"""

from __future__ import annotations

from datetime import datetime

from oodatcaa.importers.findings import Findings
from oodatcaa.importers.oodatcaa.checks import Checks
from oodatcaa.importers.oodatcaa.collect import collect, looks_like_task
from oodatcaa.importers.oodatcaa.conflict import BASE, Side, Sides, split_sides
from oodatcaa.importers.oodatcaa.counters import CounterCheck
from oodatcaa.importers.oodatcaa.dialect import TaskReader
from oodatcaa.importers.oodatcaa.facts import FactReader
from oodatcaa.importers.oodatcaa.identity import Placer
from oodatcaa.importers.oodatcaa.links import link
from oodatcaa.importers.oodatcaa.mapping import Mapper
from oodatcaa.importers.oodatcaa.merge import merge
from oodatcaa.importers.oodatcaa.nested import nested_times
from oodatcaa.importers.oodatcaa.scan import Node, Scan, scan
from oodatcaa.importers.records import Imported, ImportKind

__all__ = ["read_queue"]


def read_queue(text: str, *, source: str, now: datetime) -> Imported:
    """Everything that `text` says, as records. `now` is aware; later times are reported."""
    findings = Findings(source)
    conflict = split_sides(text.removeprefix("\N{ZERO WIDTH NO-BREAK SPACE}"))
    _report_markers(conflict, findings)
    sides = [
        (side, _scan(side, findings if side.name != BASE else Findings(source), conflict.hunks > 0))
        for side in conflict.sides
    ]
    read = [
        (side.name, result.roots, collect(result.roots, damaged=bool(result.damage)))
        for side, result in sides
    ]
    found = merge([(name, collected) for name, _, collected in read], findings, now)
    damaged = bool(conflict.hunks) or any(result.damage for _, result in sides)
    reader = TaskReader(findings, damaged=damaged)
    tasks = [reader.read(item) for item in found]
    facts = FactReader(findings, now).read([side for side in read if side[0] != BASE])
    placement = Placer(tasks, findings).place()
    links = link(placement, findings)
    counters = CounterCheck(placement, findings, damaged=damaged)
    for story in placement.stories:
        counters.check_story(story)
    counters.check(facts)
    Checks(placement, links, facts, findings, now, nested_times(read)).run()
    mapped = Mapper(placement, links, findings, now).map()
    if not tasks:
        findings.error("queue.no_tasks", None, "no task was found in this file")
    return Imported(
        kind=ImportKind.OODATCAA,
        source=source,
        stories=tuple(mapped.stories),
        subtasks=tuple(mapped.subtasks),
        sprint=facts.sprint,
        notes=tuple(mapped.notes),
        renamed={task.old: task.id for task in placement.all()},
        findings=findings.all(),
    )


def _report_markers(conflict: Sides, findings: Findings) -> None:
    if conflict.hunks:
        labels = " and ".join(side.label for side in conflict.sides if side.label)
        findings.error(
            "conflict.markers",
            conflict.first,
            f"{conflict.hunks} conflict{'s' * (conflict.hunks > 1)} in the file"
            + (f" ({labels})" if labels else "")
            + "; every side was read",
        )
    if conflict.base:
        findings.info(
            "conflict.base",
            conflict.first,
            "the common ancestor of the conflicts, for comparison",
            "\n".join(conflict.base),
        )
    for line, problem in conflict.problems:
        findings.error("conflict.broken", line, problem)


def _scan(side: Side, findings: Findings, mapped: bool) -> Scan:
    """The side's values with the lines of the whole file, and its damage as findings."""
    result = scan(side.text, looks_like_task)
    for damage in result.damage:
        line = side.line(damage.line) if mapped else damage.line
        name = f" (side {side.name!r} of the conflict)" if mapped else ""
        findings.error(damage.code, line, damage.message + name, damage.content)
    front: list[Node] = list(result.roots) if mapped else []
    while front:
        node = front.pop()
        node.line = side.line(node.line)
        front += [child for _, child in node.children()]
    return result
