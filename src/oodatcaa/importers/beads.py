"""beads' issues as JSON Lines, and the dump of its tables.

An issue becomes a story. Only what keeps an issue from being ready in beads keeps a story waiting:
blocks, waits-for, conditional-blocks, and what blocks its parent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
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
    is_set,
    list_of,
    loads,
    parsed,
    report_graph,
    report_paths,
    text_of,
    with_finished,
)

WORK = frozenset({"", "task", "bug", "feature", "chore", "docs", "question", "epic", "spike"})
NO_WORK = frozenset(
    {"message", "merge-request", "molecule", "gate", "agent", "role", "convoy", "event", "slot"}
    | {"wisp", "rig", "decision"}
)
OPEN = frozenset({"", "open", "in_progress", "blocked", "deferred", "pinned", "hooked"})
FAILED = ":failed"
_MAPPED = frozenset(
    {"id", "title", "description", "design", "acceptance_criteria", "status", "priority"}
    | {"issue_type", "estimated_minutes", "dependencies"}
)
_STATUSES = OPEN | {"closed", "tombstone"}


def looks_like_beads(text: str) -> bool:
    first = next((line for line in text[:2_000_000].splitlines() if line.strip()), "")
    row = parsed(first) if len(first) < 1_000_000 else None
    if isinstance(row, dict) and _is_row(row):
        return True
    value = parsed(text)
    if isinstance(value, dict) and isinstance(value.get("rows"), list):
        value = value["rows"]
    return isinstance(value, list) and any(_is_issue(item) for item in value[:5])


def _is_row(value: object) -> bool:
    return _is_issue(value) or (
        isinstance(value, dict) and "issue_id" in value and "depends_on_id" in value
    )


def _is_issue(value: object) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("id"), str):
        return False
    told = sum(key in value for key in ("issue_type", "status", "priority", "created_at"))
    return "title" in value and told >= 2 and not {"parent_task", "plan_step"} & set(value)


@dataclass
class _Issue:
    id: str
    line: int
    fields: dict[str, Any]
    needs: list[tuple[str, str]] = field(default_factory=list)
    """(type, id of the other issue)"""
    extra: list[Leftover] = field(default_factory=list)

    def text(self, key: str) -> str:
        return text_of(self.fields.get(key))

    @property
    def gone(self) -> bool:
        return self.text("status") == "tombstone" or bool(self.text("deleted_at"))

    @property
    def closed(self) -> bool:
        return self.text("status") == "closed"


def read_beads(text: str, *, source: str) -> Imported:
    """Every open issue as a draft, and everything odd about it. Never raises."""
    findings = Findings(source)
    issues: dict[str, _Issue] = {}
    loose: list[tuple[int, dict[str, Any]]] = []
    for line, row in _rows(text, findings):
        name = text_of(row.get("id"))
        if "issue_id" in row and "title" not in row:
            loose.append((line, row))
        elif not name or not text_of(row.get("title")):
            findings.error("beads.no_id", line, "an issue without id or title", row)
        elif name in issues:
            findings.error(
                "beads.duplicate", line, f"a second line for {name}; the later one counts",
                issues[name].fields,
            )  # fmt: skip
            issues[name] = _Issue(name, line, row)
        elif len(issues) < MOST_TASKS:
            issues[name] = _Issue(name, line, row)
        else:
            findings.error(
                "beads.too_many",
                line,
                f"{name} is not read: {MOST_TASKS:,} issues are the most",
                row,
            )
    if not issues:
        findings.error("beads.no_issues", None, "no issue was found in this file")
    for issue in issues.values():
        _own_relations(issue, findings)
    for line, row in loose:
        _loose_row(issues, line, row, findings)
    return _drafts(issues, source, findings)


def _rows(text: str, findings: Findings) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object): JSON Lines, or one list of objects, or {"rows": […]}."""
    whole = parsed(text)
    if isinstance(whole, dict) and isinstance(whole.get("rows"), list):
        whole = whole["rows"]
    if isinstance(whole, list):
        for at, item in zip(_row_lines(text, len(whole)), whole, strict=True):
            if isinstance(item, dict):
                yield at, item
            else:
                findings.error("beads.damaged", at, "a row that is no object", item)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = loads(line)
        except (ValueError, RecursionError) as error:
            what = error.msg if isinstance(error, json.JSONDecodeError) else "unreadable"
            findings.error("beads.damaged", number, f"not valid JSON: {what}", line)
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            findings.error("beads.damaged", number, "a line that is no object", line)


def _row_lines(text: str, rows: int) -> list[int]:
    """Where each row of a table dump begins; the first line for all when that can not be told."""
    root = next(iter(scan(text, lambda value: "id" in value).roots), Node(line=1))
    if root.fields is not None:
        root = root.fields.get("rows", root)
    lines = [node.line for node in root.items or ()]
    return lines if len(lines) == rows else [1] * rows


def _own_relations(issue: _Issue, findings: Findings) -> None:
    for item in list_of(issue.fields.get("dependencies")):
        if isinstance(item, str):
            issue.needs.append(("blocks", item))
            continue
        other = _other(item)
        if not isinstance(item, dict) or not other:
            findings.warning("dependency.unreadable", issue.line, f"of {issue.id}", item)
            continue
        owner = text_of(item.get("issue_id"))
        if owner and owner != issue.id:
            findings.warning(
                "beads.contradiction", issue.line, f"{issue.id} holds a dependency of {owner}", item
            )
            continue
        _relate(issue, item, other)
    parent = issue.text("parent") or issue.text("parent_id")
    if parent:
        issue.needs.append(("parent-child", parent))


def _other(item: object) -> str:
    if not isinstance(item, dict):
        return ""
    return text_of(item.get("depends_on_id") or item.get("depends_on") or item.get("id"))


def _relate(issue: _Issue, item: dict[str, Any], other: str) -> None:
    kind = text_of(item.get("type") or item.get("dependency_type")) or "blocks"
    issue.needs.append((kind, other))
    if kind not in ("blocks", "parent-child"):
        issue.extra.append(
            Leftover(what=f"{kind} {other}", place=f"line {issue.line}", text=as_json(item))
        )


def _loose_row(
    issues: dict[str, _Issue], line: int, row: dict[str, Any], findings: Findings
) -> None:
    """A row of another table of the dump: a dependency, a label, a comment."""
    issue = issues.get(text_of(row.get("issue_id")))
    if issue is None:
        findings.error("beads.orphan", line, "a row of an issue that is not in this file", row)
    elif _other({"depends_on_id": row.get("depends_on_id")}):
        _relate(issue, row, text_of(row.get("depends_on_id")))
    else:
        what = next((key for key in ("label", "text", "event_type") if key in row), "row")
        issue.extra.append(Leftover(what=what, place=f"line {line}", text=as_json(row)))


def _drafts(issues: dict[str, _Issue], source: str, findings: Findings) -> Imported:
    children: dict[str, list[_Issue]] = {}
    for issue in issues.values():
        for kind, other in issue.needs:
            if kind == "parent-child":
                children.setdefault(other, []).append(issue)
    drafts: list[DraftStory] = []
    over: dict[str, Over] = {}
    for issue in issues.values():
        left = _left_out(issue, bool(children.get(issue.id)))
        if left:
            if issue.gone or issue.closed:
                over[issue.id] = _over(issue)
            title = short(issue.text("title"))
            code = "plan.finished" if issue.id in over else "beads.no_story"
            findings.info(code, issue.line, f"{issue.id} {title} {left}", issue.fields)
        else:
            drafts.append(_Drafter(issues, children, findings).draft(issue))
    lines = {issue.id: issue.line for issue in issues.values()}
    # What waits for a failure is reported as that.
    failures = {key for draft in drafts for key in draft.depends_on if key.endswith(FAILED)}
    report_graph(drafts, lines, frozenset(over) | failures, findings)
    return Imported(
        kind=ImportKind.BEADS,
        source=source,
        drafts=with_finished(drafts, over),
        done=tuple(over),
        past=tuple(str(item) for item in over.values()),
        findings=findings.all(),
    )


def _over(issue: _Issue) -> Over:
    words = [issue.text("close_reason"), issue.text("description")]
    return Over(
        key=issue.id,
        title=issue.text("title"),
        status="deleted" if issue.gone else issue.text("status"),
        what="; ".join(word for word in words if word),
        line=issue.line,
        fields=issue.fields,
    )


def _left_out(issue: _Issue, has_children: bool) -> str:
    """Why an issue becomes no story; empty = it does."""
    if issue.gone:
        return "was deleted there (a tombstone)"
    if issue.closed:
        return "is closed there; not done again"
    if any(is_set(issue.fields.get(key)) for key in ("ephemeral", "is_template", "wisp")):
        return "is ephemeral or a template"
    kind = issue.text("issue_type")
    if kind in NO_WORK:
        return f"is no work of its own ({kind})"
    if kind == "epic" and has_children:
        return "is an epic: its children become stories"
    return ""


class _Drafter:
    def __init__(
        self, issues: dict[str, _Issue], children: dict[str, list[_Issue]], findings: Findings
    ) -> None:
        self.issues = issues
        self.children = children
        self.findings = findings

    def draft(self, issue: _Issue) -> DraftStory:
        status = issue.text("status")
        if status not in _STATUSES:
            self.findings.warning(
                "status.unknown", issue.line, f"{issue.id}: {short(status)!r} is read as open"
            )
        elif status == "deferred":
            self.findings.warning("beads.deferred", issue.line, f"{issue.id} was deferred there")
        if issue.text("issue_type") not in WORK:
            self.findings.warning(
                "beads.type", issue.line,
                f"{issue.id}: type {short(issue.text('issue_type'))!r} is read as a task",
            )  # fmt: skip
        gates, words = criteria(issue.text("acceptance_criteria"), "AC")
        report_paths(gates, issue.line, self.findings)
        title = issue.text("title")
        action = issue.text("design") or issue.text("description")
        return DraftStory(
            key=issue.id,
            title=short(title, 100),
            slug=slugify(title),
            goal=issue.text("description"),
            phase=", ".join(parent.text("title") for parent in self._parents(issue)),
            priority=self._priority(issue),
            estimate_minutes=self._estimate(issue),
            depends_on=self._needs(issue),
            steps=(DraftStep(number=1, title=short(title, 200), action=action),),
            gates=tuple(gates),
            statements=tuple(words),
            leftovers=self._leftovers(issue),
        )

    def _priority(self, issue: _Issue) -> int | None:
        """0 is the most urgent, and a value; a missing one is none."""
        value = issue.fields.get("priority")
        number = int_of(value)
        if value in (None, ""):
            return None
        if number is None or not 0 <= number <= 4:
            self.findings.warning(
                "priority.unknown", issue.line, f"{issue.id}: {short(value)} is not 0 to 4", value
            )
            return None
        return number

    def _estimate(self, issue: _Issue) -> int | None:
        minutes = int_of(issue.fields.get("estimated_minutes"))
        return minutes if minutes and 0 < minutes < 100_000 else None

    def _parents(self, issue: _Issue) -> list[_Issue]:
        """The chain of parents, nearest first; a circle ends it."""
        found: list[_Issue] = []
        at = issue
        while True:
            names = [other for kind, other in at.needs if kind == "parent-child"]
            parent = self.issues.get(names[0]) if names else None
            if parent is None or parent is issue or parent in found:
                return found
            found.append(parent)
            at = parent

    def _needs(self, issue: _Issue) -> tuple[str, ...]:
        found: list[str] = []
        for holder in (issue, *self._parents(issue)):
            for kind, other in holder.needs:
                if kind in ("blocks", "waits-for"):
                    found += self._whole(other, with_children=kind == "waits-for")
                elif kind == "conditional-blocks":
                    self.findings.warning(
                        "beads.conditional", holder.line,
                        f"{issue.id} is to be done only if {other} fails: it stays blocked until "
                        f"--assume-done {other}{FAILED}, or cancel it",
                    )  # fmt: skip
                    found.append(other + FAILED)
        if issue.id in found:
            self.findings.error("dependency.circle", issue.line, f"{issue.id} depends on itself")
        return tuple(name for name in dict.fromkeys(found) if name != issue.id)

    def _whole(self, name: str, *, with_children: bool) -> list[str]:
        """An epic is done when everything below it is; other issues stand for themselves."""
        issue = self.issues.get(name)
        is_epic = issue is not None and issue.text("issue_type") == "epic"
        below = self._below(name) if is_epic or with_children else []
        own = [] if is_epic and below else [name]
        return own + below

    def _below(self, name: str) -> list[str]:
        found: dict[str, None] = {}
        front = [name]
        while front:
            for child in self.children.get(front.pop(), ()):
                if child.id not in found and child.id != name:
                    found[child.id] = None
                    front.append(child.id)
        return [key for key in found if not self._container(key)]

    def _container(self, name: str) -> bool:
        return self.issues[name].text("issue_type") == "epic" and bool(self.children.get(name))

    def _leftovers(self, issue: _Issue) -> tuple[Leftover, ...]:
        place = f"line {issue.line}"
        rest = [
            Leftover(
                what=key or "a field without a name",
                place=place,
                text=value if isinstance(value, str) else as_json(value),
            )
            for key, value in issue.fields.items()
            if key not in _MAPPED and value not in (None, "", [], {}, 0, False)
        ]
        for key, plain in (("status", ("", "open")), ("issue_type", ("", "task"))):
            if issue.text(key) not in plain:
                rest.append(Leftover(what=f"{key} there", place=place, text=issue.text(key)))
        epics = [
            Leftover(
                what=f"its parent {parent.id} {parent.text('title')}",
                place=f"line {parent.line}",
                text=as_json(parent.fields),
            )
            for parent in self._parents(issue)
        ]
        return (*rest, *issue.extra, *epics)
