"""The two state machines: diagrams and tables from `oodatcaa.domain.states`."""

from __future__ import annotations

from docs_pages.tables import table
from oodatcaa.domain.states import STORY_TABLE, SUBTASK_TABLE, Row, mermaid
from oodatcaa.views.markdown import code, fence


def story_diagram() -> str:
    return fence(mermaid("story"), "mermaid")


def subtask_diagram() -> str:
    return fence(mermaid("subtask"), "mermaid")


def story_transitions() -> str:
    return _transitions(STORY_TABLE)


def subtask_transitions() -> str:
    return _transitions(SUBTASK_TABLE)


def _transitions(rows: tuple[Row, ...]) -> str:
    """Rows that differ only in their source are one line."""
    merged: dict[tuple[str, str, str, str], list[str]] = {}
    for row in rows:
        kind = row.kind.value if row.kind else ""
        key = (row.target.value, row.name, row.who, kind)
        merged.setdefault(key, []).append(row.source.value)
    lines = [
        (", ".join(map(code, sources)), code(target), name, who, kind or "any")
        for (target, name, who, kind), sources in merged.items()
    ]
    with_kind = any(line[4] != "any" for line in lines)
    headers = ["From", "To", "When", "Who", "Kind"]
    width = len(headers) if with_kind else len(headers) - 1
    return table(headers[:width], [line[:width] for line in lines])
