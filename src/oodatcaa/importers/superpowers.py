"""Plans in the superpowers form: a title, then tasks, each with files and small steps.

A task becomes a story that waits for the task before it. `Run:` with `Expected:` becomes a gate:
FAIL must fail at that point, PASS must succeed; the exit status decides, the message is a hint.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from oodatcaa.domain.draft import DraftStory
from oodatcaa.domain.source import Leftover
from oodatcaa.domain.task import slugify
from oodatcaa.importers.findings import Findings, short
from oodatcaa.importers.markdown import Block, blocks
from oodatcaa.importers.records import Imported, ImportKind
from oodatcaa.importers.superpowers_task import TaskDrafter

MAX_PLAN_CHARS = 2_000_000
"""A plan for people; the largest ones seen have a tenth of this."""
_BEGINNING = 100_000
TASK = re.compile(r"^\W*Task\s+(\d+(?:\.\d+)*[a-z]?)\b\s*[:.)–—-]*\s*(.*)$", re.IGNORECASE)
_GROUP = re.compile(r"^\W*(?:Chunk|Phase|Part|Milestone|Stage|Section)\s+\w+", re.IGNORECASE)
_HEADER = re.compile(r"^\*\*(Goal|Architecture|Tech Stack)\s*:?\s*\*\*\s*:?\s*(.*)$", re.DOTALL)
_LIKE = re.compile(r"^ {0,3}#{2,4}\s+\W*Task\s+\d", re.MULTILINE | re.IGNORECASE)


def looks_like_superpowers(text: str) -> bool:
    # What is far too long to be a plan is told so; a look at its beginning is enough for that.
    head = text if len(text) <= MAX_PLAN_CHARS else text[:_BEGINNING]
    if not _LIKE.search(head):
        return False
    found = blocks(head)
    tasks = [block for block in found if is_task(block)]
    steps = [block for block in found if block.kind == "text" and "**Step" in block.text]
    header = any(_HEADER.match(block.text) for block in found if block.kind == "text")
    return bool(tasks) and (bool(steps) or header)


def is_task(block: Block) -> bool:
    return block.kind == "heading" and 2 <= block.level <= 4 and bool(TASK.match(block.text))


@dataclass
class Part:
    """One task of the file: its number, its title, and everything below its heading."""

    number: str
    title: str
    line: int
    group: str
    level: int
    """Of its heading: what stands under a deeper one belongs to the task."""
    body: list[Block] = field(default_factory=list)


@dataclass
class _Plan:
    title: str = ""
    goal: str = ""
    header: list[Leftover] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)


def read_superpowers(text: str, *, source: str) -> Imported:
    """Every task of the plan as a draft, and everything odd about it. Never raises."""
    findings = Findings(source)
    plan = _outline(blocks(text), findings)
    if not plan.title:
        findings.warning("plan.no_title", 1, "the plan has no # title")
    if not plan.goal:
        findings.warning("plan.no_goal", 1, "the plan has no **Goal:**")
    if not plan.parts:
        findings.error("plan.no_tasks", None, "the plan has no heading such as ### Task 1: …")
    _number(plan.parts, findings)
    name = slugify(plan.title or source)
    drafts: list[DraftStory] = []
    for part in plan.parts:
        before = drafts[-1].key if drafts else ""
        drafts.append(_draft(name, plan, part, before, findings))
    return Imported(
        kind=ImportKind.SUPERPOWERS,
        source=source,
        drafts=tuple(drafts),
        findings=findings.all(),
    )


def _outline(found: Sequence[Block], findings: Findings) -> _Plan:
    plan = _Plan()
    group = ""
    part: Part | None = None
    for block in found:
        if is_task(block):
            match = TASK.match(block.text)
            assert match is not None
            part = Part(match[1], _plain(match[2]), block.line, group, block.level)
            plan.parts.append(part)
        elif block.kind == "heading" and block.level == 1 and not plan.title:
            plan.title = _plain(block.text)
        elif block.kind == "heading" and _GROUP.match(block.text):
            group, part = _plain(block.text), None
        elif block.kind == "heading" and part is not None and block.level <= part.level:
            part = None
            _header(plan, block, findings)
        elif part is not None:
            part.body.append(block)
        else:
            _header(plan, block, findings)
    return plan


def _header(plan: _Plan, block: Block, findings: Findings) -> None:
    match = _HEADER.match(block.text) if block.kind == "text" else None
    if match and match[1] == "Goal" and not plan.goal:
        plan.goal = " ".join(match[2].split())
    elif block.text.strip() and set(block.text.strip()) - set("-*_ "):
        what = match[1] if match else "text outside every task"
        text = match[2] if match else block.text
        plan.header.append(Leftover(what=what, place=f"line {block.line}", text=text))
        findings.info("plan.unmapped", block.line, what, text)


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[*`]+", "", text).split())


def _number(parts: list[Part], findings: Findings) -> None:
    """Two tasks of one number get different keys; both are kept."""
    seen: dict[str, int] = {}
    for part in parts:
        seen[part.number] = seen.get(part.number, 0) + 1
        if seen[part.number] > 1:
            findings.warning(
                "plan.numbering", part.line, f"there is another Task {part.number} before this one"
            )
            part.number = f"{part.number}-{seen[part.number]}"


def _draft(name: str, plan: _Plan, part: Part, before: str, findings: Findings) -> DraftStory:
    task = TaskDrafter(part.body, part.line, f"Task {part.number}", findings).read()
    title = part.title or f"Task {part.number} of {plan.title or 'the plan'}"
    if not part.title:
        findings.warning("plan.no_name", part.line, f"Task {part.number} has no title")
    if not task.gates:
        findings.warning(
            "plan.no_verify", part.line, f"Task {part.number} names no command and no file"
        )
    goal = "\n\n".join(text for text in (title + ".", *task.words) if text)
    return DraftStory(
        key=f"{name}#{part.number}",
        title=short(title, 100),
        slug=slugify(title),
        goal=goal,
        purpose=plan.goal,
        phase=" / ".join(text for text in (plan.title, part.group) if text),
        depends_on=(before,) if before else (),
        files=tuple(task.files),
        steps=tuple(task.steps),
        gates=tuple(task.gates),
        references=tuple(task.references),
        leftovers=(*plan.header, *task.leftovers),
    )
