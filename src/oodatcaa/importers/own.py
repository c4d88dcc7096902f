"""Our own exchange format: what `oodatcaa export --to json` writes, read back as it was."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from oodatcaa.domain.draft import EXCHANGE_FORMAT as FORMAT
from oodatcaa.domain.draft import EXCHANGE_VERSION as VERSION
from oodatcaa.domain.draft import DraftStory
from oodatcaa.importers.findings import Findings, short
from oodatcaa.importers.oodatcaa.scan import Node, scan
from oodatcaa.importers.records import Imported, ImportKind
from oodatcaa.importers.tables import parsed, report_graph


def looks_like_own(text: str) -> bool:
    value = parsed(text)
    if isinstance(value, dict):
        return value.get("format") == FORMAT
    return f'"format": "{FORMAT}"' in text[:2_000]


def read_own(text: str, *, source: str) -> Imported:
    """Every plan that is valid, and what is wrong with the others. Never raises."""
    findings = Findings(source)
    result = scan(text, lambda value: "key" in value and "steps" in value)
    for damage in result.damage:
        findings.error(damage.code, damage.line, damage.message, damage.content)
    root = next((node for node in result.roots if node.fields is not None), Node(line=1))
    fields = root.fields or {}
    version = fields["version"].plain if "version" in fields else None
    if version != VERSION:
        findings.error(
            "json.version", root.line, f"version {short(version)} is not {VERSION}, the known one"
        )
    drafts: list[DraftStory] = []
    lines: dict[str, int] = {}
    items = fields.get("plans")
    for node in (items.items if items is not None else None) or ():
        draft = _draft(node, findings)
        if draft is not None and draft.key in lines:
            findings.error("json.duplicate", node.line, f"a second plan {draft.key}", node.plain)
        elif draft is not None:
            drafts.append(draft)
            lines[draft.key] = node.line
    if not drafts:
        findings.error("json.no_plans", None, "no plan was found in this file")
    done = _done(fields.get("done"))
    report_graph(drafts, lines, frozenset(done), findings)
    return Imported(
        kind=ImportKind.JSON,
        source=source,
        drafts=tuple(drafts),
        done=done,
        findings=findings.all(),
    )


def _done(node: Node | None) -> tuple[str, ...]:
    items: Any = node.plain if node is not None else ()
    return tuple(item for item in items if isinstance(item, str)) if isinstance(items, list) else ()


def _draft(node: Node, findings: Findings) -> DraftStory | None:
    try:
        draft = DraftStory.model_validate(node.plain, strict=False)
    except ValidationError as error:
        for item in error.errors(include_input=False, include_url=False):
            where = ".".join(str(part) for part in item["loc"])
            findings.error("json.field", node.line, f"{where}: {item['msg']}")
        findings.error("json.plan", node.line, "a plan that can not be read", node.plain)
        return None
    wrong = _contradictions(draft)
    for problem in wrong:
        findings.error("json.plan", node.line, f"{draft.key}: {problem}", node.plain)
    return None if wrong else draft


def _contradictions(draft: DraftStory) -> tuple[str, ...]:
    """What the form of the record lets through, and damage makes of a plan."""
    found = []
    if not draft.steps:
        found.append("it has no steps")
    if [step.number for step in draft.steps] != list(range(1, len(draft.steps) + 1)):
        found.append("its steps are not numbered 1, 2, 3, …")
    if len({gate.id for gate in draft.gates}) != len(draft.gates):
        found.append("two of its gates have one id")
    if draft.key in draft.depends_on:
        found.append("it waits for itself")
    return tuple(found)
