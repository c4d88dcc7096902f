"""Close a sprint: its records become one commit and the tag `sprint-<n>`, the rest moves on.

The queue, the log and the events move into `.oodatcaa/work/archive/sprint-<n>/` in one atomic
step; everything after it is made from that folder and can be made again. A folder without
`closed.json` belongs to a sprint whose closing was interrupted: the next `sprint close` (or
`doctor --repair`) completes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from oodatcaa.app.closing import SPRINT_REPORT, closed_report
from oodatcaa.app.export import kept_records
from oodatcaa.app.history import HISTORY, archived_board, folder_metrics
from oodatcaa.app.project import Project
from oodatcaa.app.sprint_view import SPRINT_PLAN
from oodatcaa.domain.base import NonEmpty, Record, Utc
from oodatcaa.domain.board import Board, Decision, Sprint
from oodatcaa.domain.retrospective import look_back
from oodatcaa.domain.sprinting import Carried, carried_from, close_sprint
from oodatcaa.domain.states import is_finished
from oodatcaa.errors import OodatcaaError, RefusedError
from oodatcaa.kit.faults import reach
from oodatcaa.kit.files import write_atomic
from oodatcaa.kit.locks import FileLock
from oodatcaa.state.log import ARCHIVE, INDEX_FILE, LOG_FILE, read_log, rotations
from oodatcaa.state.snapshot import QUEUE_FILE, SCHEMA_FILE
from oodatcaa.vcs import TargetMoved
from oodatcaa.views.retrospective import retrospective

CARRIED = "carried.json"
CLOSED = "closed.json"
RETROSPECTIVE = "RETROSPECTIVE.md"
METRICS = "metrics.json"
TRIES = 3
LIVE_FOLDERS = ("plans", "reports", "evidence", "facts")


class ClosedRecord(Record):
    """Written last: everything about the closing is done."""

    sprint: int
    by: NonEmpty
    at: Utc
    commit: NonEmpty
    tag: NonEmpty
    target: NonEmpty
    moves_on: tuple[str, ...]


@dataclass(frozen=True)
class Closed:
    """Where the closed sprint lies, its commit and tag, and what moves on."""

    number: int
    folder: Path
    commit: str
    tag: str
    target: str
    carried: Carried


def end_sprint(project: Project, by: str) -> Closed:
    """Close the open sprint, and complete closings that were interrupted before.

    Raises RefusedError, with nothing changed, while somebody works on it or when its commit could
    not be brought to the target branch: sprint.none, sprint.busy, crew.active, git.target_dirty,
    git.tag_exists, git.no_branch.
    """
    with _no_crew(project):
        waiting = half_closed(project)
        board = project.board()
        if board.sprint is None and not waiting:
            raise RefusedError("sprint.none", "no sprint is open", hint="oodatcaa sprint new")
        closed = [complete(project, number, by) for number in waiting]
        if board.sprint is None:
            return closed[-1]
        close_sprint(board, datetime.now(UTC), by=by)  # says why not before anything is touched
        _refuse_unpublishable(project, board.sprint)
        number = board.sprint.number
        project.store.archive_sprint(number, lambda now_open, now: _close(now_open, now, by))
        reach("closing.archived")
        return complete(project, number, by)


def _close(board: Board, now: datetime, by: str) -> Decision[Carried]:
    return close_sprint(board, now, by=by)


@contextlib.contextmanager
def _no_crew(project: Project) -> Iterator[None]:
    """Nobody starts a crew while a sprint is being closed."""
    project.work.mkdir(parents=True, exist_ok=True)
    lock = FileLock(project.work / "crew.lock", code="crew.active", what="the crew of this project")
    if not lock.try_acquire():
        raise RefusedError(
            "crew.active",
            f"a crew works here: {lock.holder() or 'its process is not known'}",
            hint="stop it first (Ctrl-C in its terminal), then oodatcaa sprint close",
        )
    try:
        yield
    finally:
        lock.release()
        lock.close()


def half_closed(project: Project) -> tuple[int, ...]:
    """Sprints whose queue is archived, but whose closing was not completed; oldest first."""
    archive = project.work / ARCHIVE
    if list(archive.glob(".sprint-*.partial")):
        # The next transaction finishes what its writer had already committed to.
        project.store.transact(lambda board, _: Decision(board, None))
    found = [
        int(path.name[7:])
        for path in archive.glob("sprint-*")
        if path.name[7:].isdigit() and not (path / CLOSED).exists()
    ]
    return tuple(sorted(found))


def complete(project: Project, number: int, by: str) -> Closed:
    """Everything after the archive: pages, commit, tag, what moves on. Done again it changes
    nothing. Raises OodatcaaError when git refuses; the same call then goes on from there."""
    folder = project.work / ARCHIVE / f"sprint-{number}"
    board = archived_board(folder)
    if board.sprint is None:
        raise RefusedError("sprint.unreadable", f"{folder} holds no sprint", hint="oodatcaa doctor")
    until = _until(folder, board.sprint)
    carried = carried_from(board, until)
    for name, text in _pages(project, folder, board, until, carried).items():
        write_atomic(folder / name, text)
    reach("closing.pages")
    try:
        commit = _publish(project, board.sprint, _records(project, folder, board))
    except OodatcaaError as error:
        raise OodatcaaError(
            error.code,
            f"sprint {number} is archived but not committed: {error.message}",
            hint=f"{error.hint}; then: oodatcaa sprint close",
            details=error.details,
            exit_code=error.exit_code,
        ) from error
    reach("closing.published")
    if project.board().sprint is None:
        write_atomic(project.work / CARRIED, carried.model_dump_json(indent=2) + "\n")
    tag, target = f"sprint-{number}", board.sprint.target_branch
    done = ClosedRecord(
        sprint=number,
        by=by,
        at=datetime.now(UTC),
        commit=commit,
        tag=tag,
        target=target,
        moves_on=tuple(story.id for story in carried.unfinished),
    )
    write_atomic(folder / CLOSED, done.model_dump_json(indent=2) + "\n")
    reach("closing.closed")
    put_away(project, number)
    return Closed(number, folder, commit, tag, target, carried)


def put_away(project: Project, number: int) -> tuple[Path, ...]:
    """Move the live folders of stories that finished in that sprint, and that no later one builds
    on, beside its queue; the folders that moved."""
    folder = project.work / ARCHIVE / f"sprint-{number}"
    board = archived_board(folder)
    needed = {story.id for story in project.board().stories}
    needed |= {story.id for story in carried_from(board, datetime.now(UTC)).stories}
    moved = []
    for story in board.stories:
        if not is_finished(story) or story.id in needed:
            continue
        for kind in LIVE_FOLDERS:
            source, target = project.work / kind / story.id, folder / kind / story.id
            if source.is_dir() and not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                source.rename(target)
                moved.append(target)
    if project.board().sprint is None:
        # The closed sprint's report is in its folder; its plan says nothing any more.
        for name in (SPRINT_REPORT, SPRINT_PLAN):
            (project.work / name).unlink(missing_ok=True)
    return tuple(moved)


def _until(folder: Path, sprint: Sprint) -> datetime:
    """The sprint's last moment: the same however often its closing is completed."""
    return max((one.event.at for one in read_log(folder)), default=sprint.created_at)


def _refuse_unpublishable(project: Project, sprint: Sprint) -> None:
    folder = HISTORY / f"sprint-{sprint.number}"
    project.repo.refuse_stuck(sprint.target_branch, str(folder))
    tag = f"sprint-{sprint.number}"
    taken = project.repo.try_resolve(f"refs/tags/{tag}")
    if taken is not None:
        raise RefusedError(
            "git.tag_exists",
            f"the tag {tag} exists already, at {taken[:12]}",
            hint=f"look: git show {tag}; rename it: git tag mine-{tag} {tag} && git tag -d {tag}",
        )


def _pages(
    project: Project, folder: Path, board: Board, until: datetime, carried: Carried
) -> dict[str, str]:
    found = folder_metrics(project, folder)
    events = [one.event for one in read_log(folder)]
    seen = look_back(board, events, found, carried)
    links = (("Sprint report", SPRINT_REPORT), ("Log", LOG_FILE), ("Queue", QUEUE_FILE))
    return {
        SPRINT_REPORT: closed_report(project, board, until),
        RETROSPECTIVE: retrospective(board, found, seen, links),
        METRICS: found.model_dump_json(indent=2) + "\n",
    }


def _records(project: Project, folder: Path, board: Board) -> dict[str, bytes]:
    """What goes into git, relative to .oodatcaa/history/sprint-<n>/."""
    names = (QUEUE_FILE, SCHEMA_FILE, LOG_FILE, SPRINT_REPORT, RETROSPECTIVE, METRICS)
    paths = [folder / name for name in names]
    paths += [*rotations(folder / ARCHIVE), folder / ARCHIVE / INDEX_FILE]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.exists()}
    for story in board.stories:
        for name, data in kept_records(project, story.id).items():
            found[f"{story.id}/{name}"] = data
    return found


def _publish(project: Project, sprint: Sprint, records: Mapping[str, bytes]) -> str:
    """The one commit of the sprint on its target branch, tagged; made only if it is not there."""
    repo, target = project.repo, sprint.target_branch
    folder, tag = HISTORY / f"sprint-{sprint.number}", f"sprint-{sprint.number}"
    title = f"Sprint {sprint.number}: {sprint.title}"
    mark = str(folder / RETROSPECTIVE)
    for tries in range(1, TRIES + 1):
        base = repo.resolve(f"refs/heads/{target}")
        commit = repo.last_change(base, mark)
        if commit is not None and repo.file_at(base, mark) is not None:
            break  # committed before the process that did it ended
        try:
            commit = _commit(project, base, folder, records, f"[archive] {title}")
            reach("closing.committed")
            repo.advance(target, commit, base, beside_work=True)
            break
        except TargetMoved:
            if tries == TRIES:
                raise
    assert commit is not None
    reach("closing.advanced")
    repo.tag(tag, commit, title)
    return commit


def _commit(
    project: Project, base: str, folder: Path, records: Mapping[str, bytes], message: str
) -> str:
    """In a worktree of its own: no checkout of a person is touched."""
    with project.repo.check_worktree(base, folder.name) as tree:
        for name, data in records.items():
            write_atomic(tree / folder / name, data)
        commit = project.repo.commit_files(tree, [folder], message)
    if commit is None:
        raise OodatcaaError(
            "sprint.nothing_to_commit",
            f"git sees no change in {folder}",
            hint=f"is it ignored? git check-ignore -v {folder}/{QUEUE_FILE}",
        )
    return commit
