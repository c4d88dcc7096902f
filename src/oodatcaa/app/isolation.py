"""Whether an outside agent kept to its worktree: a look before, a look after, and what differs.

It may write in its story's worktree and move its story's branch. Everything else that changed and
that the framework did not do itself is a reason to refuse the attempt; nothing is put back, for it
may be a person's work.
"""

from __future__ import annotations

import hashlib
import os
import time
from datetime import datetime
from pathlib import Path

from pydantic import Field

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
_KEPT_FOR_EVER = ("evidence/*/*.json", "plans/*/plan-v*[0-9].json")
_SETTINGS = ("config", "hooks/*", "info/*")
_CREW_FILES = ("OBJECTIVE.md", ".oodatcaa/config.toml", "agents/*.md")


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


def look(project: Project, task: str, attempt: int) -> Look:
    """Take stock before an agent begins."""
    board = project.board()
    own = story_of(task)
    return Look(
        task=task,
        attempt=attempt,
        at=utc_now(),
        main=_changes(project, project.root),
        refs=project.repo.refs(),
        files=_files(project),
        worktrees=_worktrees(project, own),
        held=_held(board, own),
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
    hash, for the file is where that agent could write."""
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
        *_main_problems(before.main, _changes(project, project.root)),
        *_ref_problems(project, before, board, own, held),
        *_file_problems(before.files, _files(project)),
        *_worktree_problems(before.worktrees, _worktrees(project, own.id), held),
        *_queue_problems(project, before),
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
        if old == new or ref in allowed or ref.startswith(OWN_REFS):
            continue
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


def _file_problems(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Evidence and plans may be added, never changed; settings may not even be added to."""
    problems = []
    for path in sorted({*old, *new}):
        if old.get(path) == new.get(path):
            continue
        added = path not in old
        if added and path.startswith(("evidence/", "plans/")):
            continue
        what = "made" if added else "changed" if path in new else "deleted"
        problems.append(f"{path} was {what}")
    return problems


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


def _held(board: Board, own: str) -> tuple[str, ...]:
    found = {story_of(task.id) for task in tasks_of(board) if task.lease is not None}
    return tuple(sorted(found - {own}))


def _changes(project: Project, checkout: Path) -> dict[str, str]:
    return {path: _content(checkout / path) for path in project.repo.dirty_paths(checkout)}


def _worktrees(project: Project, own: str) -> dict[str, str]:
    found = {}
    for story, path in project.repo.story_worktrees().items():
        if story != own:
            text = "\n".join(f"{name} {sha}" for name, sha in _changes(project, path).items())
            found[story] = hashlib.sha256(text.encode()).hexdigest()
    return found


def _files(project: Project) -> dict[str, str]:
    found = {}
    for pattern in _CREW_FILES:
        for path in project.root.glob(pattern):
            found[str(path.relative_to(project.root))] = _content(path)
    for pattern in _SETTINGS:
        for path in project.repo.common_dir.glob(pattern):
            found[f".git/{path.relative_to(project.repo.common_dir)}"] = _content(path)
    for pattern in _KEPT_FOR_EVER:
        for path in project.work.glob(pattern):
            found[str(path.relative_to(project.work))] = _stamp(path)
            # An output without its record is still being written.
            output = path.with_suffix(".txt")
            if pattern.startswith("evidence") and output.exists():
                found[str(output.relative_to(project.work))] = _stamp(output)
    return found


def _content(path: Path) -> str:
    try:
        if path.is_symlink():
            return f"-> {path.readlink()}"
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except IsADirectoryError:
        return "folder"
    except OSError:
        return "gone"


def _stamp(path: Path) -> str:
    """Size and change time, which no program can set back; the files may be large."""
    try:
        seen = os.lstat(path)
    except OSError:
        return "gone"
    return f"{seen.st_size} {seen.st_ctime_ns} {seen.st_ino}"
