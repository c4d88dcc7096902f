"""Stories in the form of other tools; pure, and the same board gives the same text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from oodatcaa.domain.base import Record
from oodatcaa.domain.draft import EXCHANGE_FORMAT, EXCHANGE_VERSION, DraftStory
from oodatcaa.domain.evidence import GateKind, GateSpec
from oodatcaa.domain.task import Story, StoryStatus

_S = StoryStatus
_NOT_BEGUN = frozenset({_S.NEEDS_PLAN, _S.BLOCKED, _S.NEEDS_HUMAN})
_PRIORITIES = {0: "high", 1: "high", 2: "medium", 3: "low", 4: "low"}
MIDDLE = 2


class Exported(Record):
    """A story and what it is made of: the draft it came from, or one made from its plan."""

    story: Story
    draft: DraftStory


def as_json_plans(items: Sequence[Exported]) -> str:
    """Our own form. Reading it back gives the same drafts; what is finished is only named."""
    over = [item.draft.key for item in items if item.story.status in (_S.DONE, _S.CANCELLED)]
    value = {
        "format": EXCHANGE_FORMAT,
        "version": EXCHANGE_VERSION,
        "done": over,
        "plans": [
            item.draft.model_dump(mode="json") for item in items if item.draft.key not in over
        ],
    }
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def as_taskmaster(items: Sequence[Exported]) -> str:
    """tasks.json in its tagged form, under the tag master; tasks are numbered in order."""
    numbers = {item.story.id: number for number, item in enumerate(items, 1)}
    tasks = [_task(item, numbers) for item in items]
    value = {"master": {"tasks": tasks, "metadata": {"description": "exported by oodatcaa"}}}
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _task(item: Exported, numbers: dict[str, int]) -> dict[str, Any]:
    story, draft = item.story, item.draft
    steps = draft.steps if len(draft.steps) > 1 else ()
    only = draft.steps[0].action if len(draft.steps) == 1 else ""
    return {
        "id": numbers[story.id],
        "title": story.title,
        "description": story.goal or story.title,
        "status": _taskmaster_status(story),
        "dependencies": [numbers[other] for other in story.depends_on if other in numbers],
        "priority": _PRIORITIES[MIDDLE if draft.priority is None else min(4, draft.priority)],
        "details": only if only != story.goal else "",
        "testStrategy": "\n".join(_criteria(draft)),
        "subtasks": [
            {
                "id": number,
                "title": step.title,
                "description": step.action,
                "status": "done" if story.status is _S.DONE else "pending",
                "dependencies": [number - 1] if number > 1 else [],
            }
            for number, step in enumerate(steps, 1)
        ],
        "metadata": {"oodatcaa": {"story": story.id, "key": draft.key}},
    }


def _taskmaster_status(story: Story) -> str:
    if story.status in (_S.DONE, _S.CANCELLED):
        return story.status.value
    if story.status is _S.BLOCKED:
        return "blocked"
    return "pending" if story.status in _NOT_BEGUN else "in-progress"


def as_beads(items: Sequence[Exported]) -> str:
    """One issue a line. An issue that came from beads keeps its id, and P0 stays 0."""
    names = {item.story.id: _issue_id(item) for item in items}
    return "".join(
        json.dumps(_issue(item, names), ensure_ascii=False, separators=(",", ":")) + "\n"
        for item in items
    )


def _issue_id(item: Exported) -> str:
    source = item.story.source
    if source is not None and source.format == "beads":
        return source.key
    return f"oo-{item.story.id.lower()}"


def _issue(item: Exported, names: dict[str, str]) -> dict[str, Any]:
    story, draft = item.story, item.draft
    over = story.status in (_S.DONE, _S.CANCELLED)
    begun = not over and story.status not in _NOT_BEGUN
    issue: dict[str, Any] = {
        "id": names[story.id],
        "title": story.title,
        "description": story.goal,
        "design": "\n\n".join(f"{s.number}. {s.title}\n{s.action}".strip() for s in draft.steps),
        "acceptance_criteria": "\n".join(_criteria(draft)),
        "status": "closed" if over else "in_progress" if begun else "open",
        "priority": MIDDLE if draft.priority is None else draft.priority,
        "issue_type": "task",
        "estimated_minutes": story.estimate_minutes,
        "created_at": story.created_at.isoformat(),
        "updated_at": story.status_since.isoformat(),
    }
    if over:
        issue["closed_at"] = story.status_since.isoformat()
        issue["close_reason"] = story.reason or story.status.value
    needs = [
        {
            "issue_id": names[story.id],
            "depends_on_id": names[other],
            "type": "blocks",
            "created_at": story.created_at.isoformat(),
        }
        for other in story.depends_on
        if other in names
    ]
    return issue | ({"dependencies": needs} if needs else {})


def _criteria(draft: DraftStory) -> list[str]:
    found = [_criterion(gate) for gate in draft.gates]
    return [f"- {text}" for text in (*found, *draft.statements) if text]


def _criterion(gate: GateSpec) -> str:
    if gate.kind is GateKind.FILES:
        return f"at the commit there are: {', '.join(gate.paths)}"
    if gate.bound is not None:
        return str(gate.bound)
    must = " (must fail)" if gate.expect == "failure" else ""
    return f"`{gate.command}`{must}"
