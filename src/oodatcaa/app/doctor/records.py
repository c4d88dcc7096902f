"""Plans and evidence: is everything that the queue names there, and still what it was?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from oodatcaa.app.doctor.finding import Fact, Finding, note
from oodatcaa.app.doctor.machine import Looked
from oodatcaa.app.history import HISTORY, archived_board, archived_sprints
from oodatcaa.app.plans import read_record
from oodatcaa.app.project import Project
from oodatcaa.domain.board import Board
from oodatcaa.domain.evidence import Evidence
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.states import tasks_of
from oodatcaa.domain.task import Story
from oodatcaa.errors import OodatcaaError

PAGES = ("AGENT_PLAN.md", "TEST_PLAN.md")


def look_at_plans(project: Project) -> Looked:
    found: list[Finding] = []
    count = 0
    board = project.board()
    for story in board.stories:
        for version in range(1, story.plan_version + 1):
            count += 1
            found += _plan(project, board, story, version)
    return (Fact("plans", f"{count} accepted versions"),), tuple(found)


def _plan(project: Project, board: Board, story: Story, version: int) -> list[Finding]:
    folder = project.plans.folder(story.id)
    path = folder / f"plan-v{version}.json"
    if not path.exists():
        proposals = list(folder.glob(f"plan-v{version}.attempt-*.json"))
        meaning = f"{story.id} names plan v{version}, which is not there"
        if proposals:
            repair = f"accept {max(proposals).name}: its process died before the rename"
            subject = f"{story.id} {version}"
            return [
                Finding(
                    "plan.not_promoted", str(path), meaning, repair, action="plan", subject=subject
                )
            ]
        return [Finding("plan.missing", str(path), meaning, _from_git(project, story, path))]
    try:
        plan = read_record(path, Plan)
    except OodatcaaError as error:
        return [Finding("plan.invalid", str(path), error.message, _from_git(project, story, path))]
    found = [
        Finding("plan.differs", str(path), line, _from_git(project, story, path))
        for line in judge_plan(plan, story, version, board)
    ]
    if not found and _kept(project, story, path) not in (None, path.read_bytes()):
        meaning = "differs from the version that was integrated"
        found = [Finding("plan.differs", str(path), meaning, _from_git(project, story, path))]
    if version == story.plan_version and any(not (folder / page).exists() for page in PAGES):
        repair = "write the pages again from the plan record"
        subject = f"{story.id} {version}"
        code, what = "plan.page_missing", "the plan's Markdown is not there"
        found.append(Finding(code, str(folder), what, repair, action="pages", subject=subject))
    return found


def judge_plan(plan: Plan, story: Story, version: int, board: Board) -> tuple[str, ...]:
    """What of a stored plan is not what the queue accepted under that number."""
    problems = []
    if (plan.story, plan.version) != (story.id, version):
        problems.append(f"it is plan v{plan.version} of {plan.story}")
    if plan.branch != story.branch:
        problems.append(f"its branch is {plan.branch}, the story's is {story.branch}")
    planned = {item.id: item for item in plan.subtasks}
    for item in board.subtasks_of(story.id):
        if item.plan_version != version:
            continue
        wanted = planned.get(item.id)
        if wanted is None:
            problems.append(f"{item.id} was made from it, but it does not name it")
        elif (wanted.title, wanted.steps, wanted.kind) != (item.title, item.steps, item.kind):
            problems.append(f"{item.id} is another piece of work in it")
    there = {item.id for item in board.subtasks_of(story.id)}
    problems += [f"it names {name}, which was never made" for name in planned if name not in there]
    return tuple(problems)


def _kept(project: Project, story: Story, path: Path) -> bytes | None:
    """The copy that was committed with the integrated story."""
    sprint = project.board().sprint
    if story.integration is None or sprint is None:
        return None
    folder = HISTORY / f"sprint-{sprint.number}" / story.id / "plans"
    if project.repo.try_resolve(f"refs/tags/{story.integration.tag}") is None:
        return None
    return project.repo.file_at(story.integration.tag, str(folder / path.name))


def _from_git(project: Project, story: Story, path: Path) -> str:
    if _kept(project, story, path) is not None and story.integration is not None:
        return f"nothing: the accepted one is in git at {story.integration.tag}"
    return f"nothing: oodatcaa show {story.id}; a new plan version replaces it"


def look_at_evidence(project: Project) -> Looked:
    board = project.board()
    stored, found = _stored(project)
    known = {story.id for story in board.stories}
    for folder in archived_sprints(project).values():
        known |= {story.id for story in archived_board(folder).stories}
    found += judge_evidence(board, stored, known, project.work)
    for item in stored.values():
        if not project.evidence.is_intact(item):
            path = str(project.work / (item.output_path or ""))
            meaning = f"the output of {item.id} is gone or is not what the framework saw"
            found.append(Finding("evidence.output_changed", path, meaning, _again(item.task)))
    return (Fact("evidence", f"{len(stored)} pieces"),), tuple(found)


def _stored(project: Project) -> tuple[dict[str, Evidence], list[Finding]]:
    stored: dict[str, Evidence] = {}
    found = []
    for path in sorted((project.work / "evidence").glob("*/E-*.json")):
        try:
            stored[path.stem] = project.evidence.load(path.stem)
        except OodatcaaError as error:
            found.append(Finding(error.code, str(path), error.message, _again("")))
    return stored, found


def judge_evidence(
    board: Board, stored: Mapping[str, Evidence], known: Iterable[str], work: Path
) -> list[Finding]:
    found = []
    stories = set(known)
    for task in tasks_of(board):
        named = set(task.evidence)
        if isinstance(task, Story) and task.integration is not None:
            named |= set(task.integration.evidence)
        for name in sorted(named - set(stored)):
            meaning = f"{task.id} stands on {name}, which is not there"
            place = str(work / "evidence")
            found.append(Finding("evidence.missing", place, meaning, _again(task.id)))
    for name, item in stored.items():
        place = str(work / "evidence" / item.story / f"{name}.json")
        if name != item.id:
            meaning = f"it is the evidence {item.id} under another name"
            found.append(Finding("evidence.renamed", place, meaning))
        elif item.story not in stories:
            meaning = f"no sprint here has a story {item.story}"
            found.append(note("evidence.unknown_story", place, meaning))
    return found


def _again(task: str) -> str:
    who = f" of {task}" if task else ""
    return f"nothing: evidence is never made up; let the gates{who} run again"
