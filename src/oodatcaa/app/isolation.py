"""Whether an outside agent kept to its worktree: a look before, a look after, and what differs.

It may write in its story's worktree and move its story's branch. Everything else that changed and
that the framework did not do itself is a reason to refuse the attempt; nothing is put back, for it
may be a person's work.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from pydantic import Field

from oodatcaa.app import watched
from oodatcaa.app.project import Project
from oodatcaa.domain.base import NonEmpty, Record, Utc
from oodatcaa.domain.board import Board, Decision, Event, EventKind
from oodatcaa.domain.states import tasks_of
from oodatcaa.domain.task import Role, Story, StoryStatus, story_of
from oodatcaa.errors import OodatcaaError, StateError
from oodatcaa.kit.clock import utc_now
from oodatcaa.kit.files import write_atomic

GUARDS = "guards"
STOCK = "took stock before outside work"
OWN_REFS = "refs/oodatcaa/"
SETTLE_TRIES, SETTLE_SECONDS = 5, 1.0
"""An integrator that fast-forwards the main checkout makes it look changed for a moment."""


class Look(Record):
    """What an agent must not change, as it was when it began."""

    task: NonEmpty
    attempt: int
    at: Utc
    main: dict[str, str] = Field(description="changed paths of the main checkout -> content")
    refs: dict[str, str]
    files: dict[str, str] = Field(description="settings, evidence and plans -> content or stamp")
    worktrees: dict[str, str] = Field(description="other stories' worktrees -> their changes")
    held: tuple[str, ...] = Field(description="stories that somebody else works on")
    history: str = Field(default="", description="how many entries it has, and their hash")


def look(project: Project, task: str, attempt: int) -> Look:
    """Take stock before an agent begins."""
    board = project.board()
    own = story_of(task)
    return Look(
        task=task,
        attempt=attempt,
        at=utc_now(),
        main=watched.changes(project, project.root),
        refs=project.repo.refs(),
        files=watched.files(project),
        worktrees=watched.worktrees(project, own),
        held=_held(board, own),
        history=_history_mark(project),
    )


def trespasses(project: Project, before: Look) -> tuple[str, ...]:
    """One line for each thing that changed outside of the agent's own place; empty = it kept to it.

    What the framework did meanwhile (other stories' branches under a claim, integrations, new
    evidence, parked work) is not counted.
    """
    for tries in range(SETTLE_TRIES):
        found = _compare(project, before)
        integrating = any(
            story.status is StoryStatus.INTEGRATING for story in project.board().stories
        )
        if not found or not integrating or tries == SETTLE_TRIES - 1:
            return found
        time.sleep(SETTLE_SECONDS)
    return ()


def refuse_trespass(project: Project, before: Look, actor: str) -> None:
    """Raises OodatcaaError `isolation` naming everything; the history keeps it too.

    With agents.isolation = "warn" it is only written down.
    """
    found = trespasses(project, before)
    if not found:
        return
    count = f"{len(found)} change{'s' if len(found) != 1 else ''}"
    text = f"{count} outside of its worktree during {before.task} attempt {before.attempt}"
    note(project, before.task, actor, text, found)
    if project.config.agents.isolation == "warn":
        return
    raise OodatcaaError(
        "isolation",
        f"refused, {text}: {'; '.join(found[:3])}{'; …' if len(found) > 3 else ''}",
        hint=f"git -C '{project.root}' status; oodatcaa log --task {before.task} names every one",
        details=found,
    )


@contextmanager
def watching(project: Project, task: str, attempt: int, actor: str) -> Iterator[None]:
    """What changes outside of the worktree within the block refuses the attempt, also when the
    block fails. Nothing is said about a stopped one: its lease may be somebody else's by now.

    Raises OodatcaaError `isolation`.
    """
    before = look(project, task, attempt)
    try:
        yield
    except OodatcaaError as error:
        if error.code != "agent.stopped":
            refuse_trespass(project, before, actor)
        raise
    refuse_trespass(project, before, actor)


def note(
    project: Project,
    subject: str,
    actor: str,
    text: str,
    details: tuple[str, ...],
    *,
    attempt: int | None = None,
) -> None:
    """An entry of the history that moves nothing."""

    def write(board: Board, now: datetime) -> Decision[None]:
        event = Event(
            kind=EventKind.NOTE,
            at=now,
            actor=actor,
            subject=subject,
            attempt=attempt,
            text=text,
            details=details,
        )
        return Decision(board, None, (event,))

    project.store.transact(write)


def keep_look(project: Project, found: Look, actor: str) -> None:
    """For an agent that comes back in another process (a manual claim). The journal keeps its
    hash, for the file is where that agent could write. The first look of an attempt stays, also
    when its holder claims it once more."""
    if _stock_taken(project, found.task, found.attempt) is not None:
        return
    text = found.model_dump_json() + "\n"
    write_atomic(_place(project, found.task, found.attempt), text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    note(project, found.task, actor, STOCK, (digest,), attempt=found.attempt)


def kept_look(project: Project, task: str, attempt: int) -> Look | None:
    """What `keep_look` kept; None when nothing was. Raises StateError when it is gone, changed
    or can not be read any more."""
    path = _place(project, task, attempt)
    wanted = _stock_taken(project, task, attempt)
    if wanted is None:
        return None
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != wanted:
            raise ValueError("it is not what was written when the task was claimed")
        return Look.model_validate_json(data)
    except (OSError, ValueError) as error:
        raise StateError(
            "isolation.unreadable",
            f"{path} can not be read: {error}",
            hint=f"oodatcaa release {task}, then claim it again",
        ) from error


def _stock_taken(project: Project, task: str, attempt: int) -> str | None:
    """The hash that the journal has: the first entry counts, it is older than the work."""
    for logged in project.store.history():
        event = logged.event
        if (event.subject, event.attempt, event.text) == (task, attempt, STOCK):
            return event.details[0]
    return None


def _place(project: Project, task: str, attempt: int) -> Path:
    return project.work / GUARDS / f"{task}-a{attempt}.json"


def _compare(project: Project, before: Look) -> tuple[str, ...]:
    board = project.board()
    own = board.story_by_id[story_of(before.task)]
    held = set(before.held) | set(_held(board, own.id))
    return (
        *_main_problems(before.main, watched.changes(project, project.root)),
        *_ref_problems(project, before, board, own, held),
        *_file_problems(project, before, watched.files(project), held),
        *_worktree_problems(before.worktrees, watched.worktrees(project, own.id), held),
        *_queue_problems(project, before),
        *_history_problems(project, before),
    )


def _main_problems(old: dict[str, str], new: dict[str, str]) -> list[str]:
    changed = sorted(path for path in {*old, *new} if old.get(path) != new.get(path))
    return [f"the main checkout: {path} was changed" for path in changed]


def _ref_problems(
    project: Project, before: Look, board: Board, own: Story, held: set[str]
) -> list[str]:
    now = project.repo.refs()
    branches = {f"refs/heads/{story.branch}" for story in board.stories if story.id in held}
    allowed = {f"refs/heads/{own.branch}", *branches}
    problems = []
    for ref in sorted({*before.refs, *now}):
        old, new = before.refs.get(ref, ""), now.get(ref, "")
        if old == new or ref in allowed:
            continue
        if ref.startswith(OWN_REFS) and not old:
            continue  # what the framework parks; what is parked stays
        if ref.startswith("refs/tags/") and not old and _own_tag(project, ref):
            continue
        if old and new and _own_move(project, ref, old, new):
            continue
        problems.append(f"{ref} was {'deleted' if not new else 'moved' if old else 'made'}")
    return problems


def _own_move(project: Project, ref: str, old: str, new: str) -> bool:
    """Whether integrations that the journal knew beforehand lead from `old` to `new`.

    A file beside it would not do: whoever can move the branch can write one.
    """
    steps: dict[str, set[str]] = {}
    for logged in project.store.history():
        event = logged.event
        if event.kind is not EventKind.MERGE or event.role is not Role.INTEGRATOR:
            continue
        words = event.details[0].split() if event.details else []
        if len(words) == 3 and f"refs/heads/{words[0]}" == ref:
            steps.setdefault(words[1], set()).add(words[2])
    front, seen = {old}, {old}
    while front:
        front = {there for here in front for there in steps.get(here, ())} - seen
        seen |= front
    return new in seen


def move_line(target: str, old: str, new: str) -> str:
    """How an event says that the target moves; a branch's name has no space in it."""
    return f"{target} {old} {new}"


def _own_tag(project: Project, ref: str) -> bool:
    """A tag of a story, on a commit of an integration."""
    target = project.sprint().target_branch
    name = ref.removeprefix("refs/tags/")
    sha = project.repo.try_resolve(ref)
    return name.endswith("-complete") and sha is not None and project.repo.is_ancestor(sha, target)


def _file_problems(
    project: Project, before: Look, new: dict[str, str], held: set[str]
) -> list[str]:
    """Records may be added, and those of a story under work may change; nothing else may."""
    old = before.files
    free = held | _shared(project, before)
    problems = []
    for path in sorted({*old, *new}):
        if old.get(path) == new.get(path):
            continue
        folder, _, rest = path.partition("/")
        added = path not in old
        if added and folder in ("evidence", "plans", "agents", "baselines"):
            continue
        if folder == "facts" and _own_fact(project, path, rest.partition("/")[0], free):
            continue
        if folder == "agents" and _story_of_call(rest) in free:
            continue
        what = "made" if added else "changed" if path in new else "deleted"
        problems.append(f"{path} was {what}")
    return problems


def _own_fact(project: Project, path: str, story: str, free: set[str]) -> bool:
    """A builder of the framework wrote it: another process, for its story, or this one."""
    return story in free or project.facts.wrote(project.work / path)


def _story_of_call(rest: str) -> str:
    """`sprint-001/T001-B01-a1-1-builder/call.json` -> T001; empty for a definition's file."""
    parts = rest.split("/")
    return parts[1].partition("-")[0] if len(parts) == 3 else ""


def _shared(project: Project, before: Look) -> set[str]:
    """The own story when somebody works, or worked meanwhile, on another part of it."""
    own = story_of(before.task)
    others = {task.id for task in tasks_of(project.board()) if task.lease is not None}
    others |= {
        logged.event.subject
        for logged in project.store.history()
        if logged.event.at >= before.at and logged.event.kind is EventKind.CLAIM
    }
    return {own} & {story_of(name) for name in others - {before.task, own}}


def _worktree_problems(old: dict[str, str], new: dict[str, str], held: set[str]) -> list[str]:
    """Of stories that nobody works on; a worktree that is new or gone is the framework's doing."""
    return [
        f"the worktree of {story} was changed"
        for story in sorted({*old} & {*new})
        if story not in held and old[story] != new[story]
    ]


def _queue_problems(project: Project, before: Look) -> list[str]:
    """An edit of SPRINT_QUEUE.json past the store is in the history, taken over or refused."""
    return [
        f"SPRINT_QUEUE.json was edited: {logged.event.text}"
        for logged in project.store.history()
        if logged.event.at >= before.at
        and logged.event.kind in (EventKind.MANUAL, EventKind.REFUSED)
        and "SPRINT_QUEUE.json" in logged.event.text
    ]


def _history_mark(project: Project, count: int | None = None) -> str:
    """Of the first `count` entries, or of all there are."""
    digest, seen = hashlib.sha256(), 0
    for logged in project.store.history():
        if seen == count:
            break
        digest.update(logged.event.model_dump_json().encode())
        seen += 1
    return f"{seen} {digest.hexdigest()}"


def _history_problems(project: Project, before: Look) -> list[str]:
    """What decides stands there (accepted plans, moves of the target): it only ever grows."""
    if not before.history:
        return []
    count = int(before.history.partition(" ")[0])
    if _history_mark(project, count) == before.history:
        return []
    return ["entries of the history were changed"]


def _held(board: Board, own: str) -> tuple[str, ...]:
    found = {story_of(task.id) for task in tasks_of(board) if task.lease is not None}
    return tuple(sorted(found - {own}))
