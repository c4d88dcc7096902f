"""Look at stored evidence, and gather it once more to see whether it reproduces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

from oodatcaa.app.checking import Checker
from oodatcaa.app.desk import Workshop
from oodatcaa.app.people import known_task, me
from oodatcaa.app.project import Project
from oodatcaa.domain.evidence import Evidence, GateKind
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.reproduction import Reproduction, compare, impossible
from oodatcaa.domain.task import story_of
from oodatcaa.errors import OodatcaaError
from oodatcaa.gates.store import EvidenceStore

RERUNS = "reruns"


def stored(project: Project, task: str, *, every: bool = False) -> tuple[Evidence, ...]:
    """The evidence of a story with its subtasks, or of one subtask, oldest first.

    The newest for each gate and task, unless `every`. `task` may be the id of one piece. Raises
    RefusedError task.unknown, OodatcaaError evidence.unknown.
    """
    if task.startswith("E-"):
        return (project.evidence.load(task),)
    known_task(project, task)
    story = story_of(task)
    found = project.evidence.of_story(story, task=None if task == story else task)
    if every:
        return found
    newest = {(item.task, item.gate.id): item for item in found}
    return tuple(item for item in found if newest[(item.task, item.gate.id)] is item)


def run_again(
    project: Project, found: tuple[Evidence, ...], say: Callable[[str], None]
) -> Iterator[Reproduction]:
    """Every gate again at its stored commit, in a fresh worktree; it moves no task.

    What it shows is kept below .oodatcaa/work/reruns, apart from the evidence that decided.
    """
    desk = Workshop(project).desk(me(), project.objective())
    checker, store = Checker(project, desk), EvidenceStore(project.work / RERUNS)
    for (_, commit), group in groupby(found, key=lambda item: (item.task, item.commit)):
        items = tuple(group)
        try:
            project.repo.resolve(commit)
            plan = _plan_of(project, items[0])
        except OodatcaaError as error:
            yield from (impossible(item, error.message) for item in items)
            continue
        asked = tuple(item for item in items if item.gate.kind is GateKind.PERSON)
        yield from (impossible(item, "a person decided it") for item in asked)
        ran = tuple(item for item in items if item not in asked)
        if not ran:
            continue
        say(f"{ran[0].task} at {commit[:12]}: running {len(ran)} gates again")
        again = checker.again(ran, plan, store)
        for first, second in zip(ran, again, strict=True):
            yield compare(first, second, intact=project.evidence.is_intact(first))


def _plan_of(project: Project, item: Evidence) -> Plan:
    story = project.board().story_by_id[item.story]
    return project.plans.load(story.id, story.plan_version)
