"""Times deep inside of fields that are kept word for word: old histories, notes, events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from oodatcaa.importers.oodatcaa.collect import Collected
from oodatcaa.importers.oodatcaa.conflict import BASE
from oodatcaa.importers.oodatcaa.scan import Node
from oodatcaa.importers.oodatcaa.times import TimeFact, parse_moment

_LEASE = "lease"  # read field by field

Side = tuple[str, list[Node], Collected]


def nested_times(sides: Sequence[Side]) -> Iterator[tuple[str, TimeFact]]:
    """(task id or "the sprint", time) of each time below the fields of a task or of the file."""
    for name, roots, collected in sides:
        if name == BASE:
            continue
        labels = {id(task.node): task.id or "a task without an id" for task in collected.tasks}
        front = [(root, "", "the sprint", 0) for root in reversed(roots)]
        while front:
            node, key, label, depth = front.pop()
            if id(node) in labels:
                label, depth = labels[id(node)], 0
            moment = parse_moment(node.scalar) if isinstance(node.scalar, str) else None
            if moment is not None and depth > 1:
                yield label, TimeFact(key, node.line, str(node.scalar), "", "", moment)
            below = [
                (child, inner or key, label, depth + 1)
                for inner, child in node.children()
                if inner != _LEASE
            ]
            front += reversed(below)
