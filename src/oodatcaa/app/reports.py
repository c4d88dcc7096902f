"""Write a role's completion report: from records, plan and events; the record lies beside it."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from oodatcaa.app.project import Project
from oodatcaa.domain.board import Board, Event, EventKind
from oodatcaa.domain.evidence import Evidence
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.progress import progress
from oodatcaa.domain.report import Action, Challenge, Report
from oodatcaa.domain.task import Role, Story, Task
from oodatcaa.kit.files import write_atomic
from oodatcaa.views.report import report as render
from oodatcaa.views.units import duration, listing, minutes, percent, words

TROUBLE = frozenset({EventKind.EXPIRE, EventKind.REFUSED, EventKind.RELEASE})


def report_folder(project: Project, story: str) -> Path:
    return project.work / "reports" / story


def report_name(role: Role, task: Task, plan_version: int) -> str:
    """planner.md, builder-T001-B01.md, refiner-v2.md: one per role's piece of work."""
    if role in (Role.BUILDER, Role.TESTER):
        return f"{role.value}-{task.id}"
    first = role is not Role.REFINER and plan_version <= 1
    return role.value if first or role is Role.INTEGRATOR else f"{role.value}-v{plan_version}"


def write_report(project: Project, report: Report, name: str) -> Path:
    """Markdown, and the record beside it. A later attempt gets a name of its own (`-attempt-2`):
    what an earlier one reported stays."""
    folder = report_folder(project, report.story)
    if _is_of_another_attempt(folder / f"{name}.json", report):
        name = f"{name}-attempt-{report.attempt}"
    write_atomic(folder / f"{name}.json", report.model_dump_json(indent=2) + "\n")
    path = folder / f"{name}.md"
    write_atomic(
        path,
        render(
            report,
            evidence_dir=f"../../evidence/{report.story}",
            plan_dir=f"../../plans/{report.story}",
        ),
    )
    return path


def _is_of_another_attempt(path: Path, report: Report) -> bool:
    try:
        return Report.model_validate_json(path.read_bytes()).attempt != report.attempt
    except FileNotFoundError:
        return False
    except ValueError:
        return True  # whatever lies there is not ours to replace


def compose(
    project: Project,
    *,
    task: Task,
    story: Story,
    role: Role,
    agent: str,
    attempt: int,
    started_at: datetime,
    finished_at: datetime,
    outcome: str,
    plan: Plan | None,
    evidence: tuple[Evidence, ...] = (),
    **parts: object,
) -> Report:
    """The report's common parts; `parts` are the role's own fields of Report."""
    board = project.board()
    events = [
        item.event
        for item in project.store.history()
        if item.event.subject in (task.id, story.id) and item.event.at >= story.created_at
    ]
    return Report.model_validate(
        {
            "story": story.id,
            "task": task.id,
            "title": task.title,
            "role": role,
            "agent": agent,
            "attempt": attempt,
            "started_at": started_at,
            "finished_at": finished_at,
            "outcome": outcome,
            "objective": plan.goal if plan else story.goal,
            "evidence": evidence,
            "challenges": challenges(events, plan),
            "lessons": lessons(parts.get("actions", ()), plan),
            "sprint_impact": impact(board, story),
            "next_steps": next_steps(board, story),
            **parts,
        }
    )


def challenges(events: list[Event], plan: Plan | None) -> tuple[Challenge, ...]:
    """From this story's events: lost leases, refused work, failed gates; with what was done."""
    found: list[Challenge] = []
    adapted = plan is not None and plan.adaptation is not None
    for event in events:
        if adapted and event.after == "needs_adapt":
            continue  # told below, with what was done about it
        failed = event.after in ("needs_adapt", "needs_human")
        if event.kind in TROUBLE or (failed and event.kind is EventKind.TRANSITION):
            found.append(Challenge(what=event.text, solution="", at=event.at))
    if plan is not None and plan.adaptation is not None:
        note = plan.adaptation
        found.append(
            Challenge(
                what=note.trigger,
                solution=f"plan v{plan.version}: " + "; ".join(note.rungs),
                at=plan.created_at,
            )
        )
    return tuple(found)


def lessons(actions: object, plan: Plan | None) -> tuple[str, ...]:
    """Only what the numbers say: estimates that were far off, parameters that had to change."""
    lines: list[str] = []
    for action in actions if isinstance(actions, tuple) else ():
        if not isinstance(action, Action) or not action.estimate_minutes:
            continue
        ratio = action.minutes / action.estimate_minutes
        if ratio >= 1.5 or (ratio <= 0.5 and action.estimate_minutes >= 2):
            lines.append(
                f"Step {action.title!r} took {duration(60 * action.minutes)}, estimated were "
                f"{minutes(action.estimate_minutes)} ({percent(ratio)})."
            )
    if plan is not None and plan.adaptation is not None:
        lines.append(
            f"What was asked for did not fit: {plan.adaptation.trigger}. It took "
            f"round {plan.adaptation.round} of adaptation to get here."
        )
    return tuple(lines)


def impact(board: Board, story: Story) -> tuple[str, ...]:
    now = progress(board)
    waiting = [other.id for other in board.stories if story.id in other.depends_on]
    lines = [f"Objective: {now.objective_percent:.0f} % of the estimated work is integrated."]
    if waiting:
        verb = "waits" if len(waiting) == 1 else "wait"
        lines.append(f"{listing(waiting)} {verb} for {story.id}.")
    return tuple(lines)


def next_steps(board: Board, story: Story) -> tuple[str, ...]:
    offered = [f"{offer.role.value}: {offer.task}" for offer in board.offers]
    lines = [f"{story.id} is {words(board.story_by_id[story.id].status.value)}."]
    if offered:
        lines.append("Offered now: " + ", ".join(offered) + ".")
    return tuple(lines)
