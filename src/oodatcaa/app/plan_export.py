"""The way back: the sprint's stories for other tools."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from oodatcaa.app.project import Project
from oodatcaa.app.sprints import carried_stories
from oodatcaa.domain.draft import DraftStep, DraftStory
from oodatcaa.domain.formats import ExportKind
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.task import Story
from oodatcaa.errors import RefusedError
from oodatcaa.views.exported import Exported, as_beads, as_json_plans, as_taskmaster

_WRITERS: dict[ExportKind, Callable[[Sequence[Exported]], str]] = {
    ExportKind.JSON: as_json_plans,
    ExportKind.TASKMASTER: as_taskmaster,
    ExportKind.BEADS: as_beads,
}


def export_stories(project: Project, kind: ExportKind) -> str:
    """Every story of the sprint, or of the next one. Raises RefusedError when there is none."""
    stories = project.board().stories or carried_stories(project)
    if not stories:
        raise RefusedError("export.empty", "there is nothing to export", hint="oodatcaa sprint new")
    return _WRITERS[kind]([Exported(story=s, draft=draft_of(project, s, stories)) for s in stories])


def draft_of(project: Project, story: Story, stories: Sequence[Story]) -> DraftStory:
    """What the story was imported from, or its newest plan in the same form."""
    if story.source is not None:
        return project.drafts.get(story.source)
    plan = project.plans.load(story.id, story.plan_version) if story.plan_version else None
    keys = {item.id: item.source.key if item.source else item.id for item in stories}
    return DraftStory(
        key=story.id,
        title=story.title,
        slug=story.slug,
        kind=story.kind,
        goal=story.goal,
        prefer_id=story.id,
        estimate_minutes=story.estimate_minutes,
        depends_on=tuple(keys[other] for other in story.depends_on if other in keys),
        files=story.files,
        steps=_steps(plan) or (DraftStep(number=1, title=story.title, action=story.goal),),
        gates=plan.test_plan.acceptance if plan else (),
    )


def _steps(plan: Plan | None) -> tuple[DraftStep, ...]:
    return tuple(
        DraftStep(
            number=step.number,
            title=step.title,
            kind=step.kind.value,
            files=step.deliverables,
            action=step.command or step.what,
            done="; ".join(step.exit_gates),
            estimate_minutes=step.estimate_minutes,
        )
        for step in (plan.steps if plan else ())
    )
