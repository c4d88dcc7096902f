"""A story's plan as it was accepted: what decides about work is not what a file says by now."""

from __future__ import annotations

from oodatcaa.app.project import Project
from oodatcaa.domain.board import EventKind
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.planning import fingerprint_line, fingerprint_start
from oodatcaa.domain.task import Story
from oodatcaa.errors import StateError


def accepted_plan(project: Project, story: Story) -> Plan:
    """Raises StateError `plan.changed` when the history knows the plan by another hash, and what
    loading it raises. Plans that are older than the hashes are taken as they are."""
    plan = project.plans.load(story.id, story.plan_version)
    start, known = fingerprint_start(plan), ""
    for logged in project.store.history():
        event = logged.event
        if event.kind is EventKind.PLAN and event.subject == story.id:
            known = next((line for line in event.details if line.startswith(start)), known)
    if known and known != fingerprint_line(plan):
        path = project.plans.folder(story.id) / f"plan-v{plan.version}.json"
        raise StateError(
            "plan.changed",
            f"{path} is not the plan that was accepted",
            hint=f"put the accepted one back, or cancel {story.id} and plan it anew",
        )
    return plan
