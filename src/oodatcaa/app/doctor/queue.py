"""Queue, journal, log, leases and sprints: does everything say the same?"""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from oodatcaa.app.archiving import LIVE_FOLDERS, half_closed
from oodatcaa.app.claims import liveness
from oodatcaa.app.doctor.finding import Fact, Finding, Severity, note
from oodatcaa.app.doctor.machine import Looked
from oodatcaa.app.history import archived_board, archived_sprints
from oodatcaa.app.project import Project
from oodatcaa.domain.board import Board
from oodatcaa.domain.lifecycle import invariants
from oodatcaa.domain.ports import Logged
from oodatcaa.domain.rounds import lease_key
from oodatcaa.domain.states import is_finished, tasks_of
from oodatcaa.domain.task import ProcessLease
from oodatcaa.kit.locks import FileLock
from oodatcaa.state.log import ARCHIVE, LOG_FILE, every_entry
from oodatcaa.state.publishing import may_lag
from oodatcaa.state.repair import examine
from oodatcaa.state.snapshot import QUEUE_FILE

LOG_REPAIR = "write it again from the journal; the damaged files are kept in archive/damaged-<time>"
NOTES = frozenset({"queue.rejected_change", "queue.snapshot_missing"})
REPAIRED_BY = {"log.incomplete": "log"}


def look_at_queue(project: Project) -> Looked:
    files = [
        Finding(
            one.code,
            one.place,
            one.meaning,
            one.repair,
            Severity.NOTE if one.code in NOTES else Severity.BAD,
            _action(one.code, one.repair),
        )
        for one in examine(project.work)
    ]
    if any(one.action == "queue" for one in files):
        return (), tuple(files)
    board = project.board()
    broken = judge_board(board, invariants(board, project.policy))
    found = (*files, *broken)
    facts = (Fact("queue", f"{len(tasks_of(board))} tasks at revision {board.revision}"),)
    return facts, found


def _action(code: str, repair: str) -> str:
    if code in REPAIRED_BY:
        return REPAIRED_BY[code]
    return "queue" if code.startswith("queue.") and not repair.startswith("none") else ""


def judge_board(board: Board, problems: Sequence[str]) -> tuple[Finding, ...]:
    place = f"{QUEUE_FILE} at revision {board.revision}"
    repair = "nothing: edit the queue file, a legal change is taken over; oodatcaa log says how"
    return tuple(Finding("queue.broken_rule", place, line, repair) for line in problems)


def look_at_log(project: Project) -> Looked:
    before, board, now = list(project.store.history()), project.board(), datetime.now(UTC)
    settled = [one for one in before if not may_lag(board, one.event.at, now)]
    entries = every_entry(project.work)
    found = judge_log(settled, list(project.store.history()), entries)
    return (Fact("log", f"{len(before)} events, {len(entries)} entries"),), found


def judge_log(
    before: Sequence[Logged], after: Sequence[Logged], entries: Sequence[Logged]
) -> tuple[Finding, ...]:
    """`entries` are those of the log's files in their order, doubles included, read after the
    history `before` and before the history `after`: a crew may be at work meanwhile."""
    places = [(one.seq, one.index) for one in entries]
    expected = {(one.seq, one.index): one.event for one in after}
    counts = Counter(places)
    missing = sorted({(one.seq, one.index) for one in before} - set(counts))
    doubled = sorted(place for place, times in counts.items() if times > 1)
    unknown = sorted(set(counts) - set(expected))
    changed = [
        (one.seq, one.index)
        for one in entries
        if expected.get((one.seq, one.index), one.event) != one.event
    ]
    rows = (
        ("log.missing_entries", missing, "entries that the journal knows are missing"),
        ("log.doubled_entries", doubled, "entries are there more than once"),
        ("log.unknown_entries", unknown, "entries are of no transaction of this sprint"),
        ("log.changed_entries", changed, "entries say something else than the journal"),
        ("log.out_of_order", _out_of_order(places), "entries stand before older ones"),
    )
    return tuple(
        Finding(
            code,
            LOG_FILE,
            f"{len(which)} {meaning}: {', '.join(f'{seq}.{index}' for seq, index in which[:5])}",
            LOG_REPAIR,
            action="log",
        )
        for code, which, meaning in rows
        if which
    )


def _out_of_order(places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    return [after for one, after in pairwise(places) if after < one]


def look_at_leases(project: Project) -> Looked:
    board = project.board()
    dead, alive = liveness(board)
    held = [task for task in tasks_of(board) if task.lease is not None]
    found = judge_leases(board, dead, alive, datetime.now(UTC), socket.gethostname())
    return (Fact("leases", f"{len(held)} held"),), found


def judge_leases(
    board: Board, dead: frozenset[str], alive: frozenset[str], now: datetime, here: str
) -> tuple[Finding, ...]:
    found = []
    repair = "one negotiation round: the work so far is kept for the next attempt"
    for task in tasks_of(board):
        lease = task.lease
        if lease is None:
            continue
        place = f"{task.id}, held by {lease.owner} on {lease.host}"
        overdue = now - lease.heartbeat_at - timedelta(seconds=lease.ttl_seconds)
        if is_finished(task):
            meaning = f"{task.status.value} tasks are held by nobody"
            found.append(Finding("lease.finished_task", place, meaning))
        elif lease_key(task) in dead:
            meaning = "its process on this machine has ended"
            found.append(Finding("lease.dead_owner", place, meaning, repair, action="negotiate"))
        elif overdue > timedelta() and lease_key(task) not in alive:
            meaning = f"no sign of life for {overdue.total_seconds():.0f} s beyond its time to live"
            found.append(Finding("lease.overdue", place, meaning, repair, action="negotiate"))
        elif isinstance(lease, ProcessLease) and lease.host != here:
            meaning = "nothing is known here about that machine's processes"
            then = "nothing: it runs out by its time to live"
            found.append(note("lease.other_host", place, meaning, then))
    return tuple(found)


def look_at_crew(project: Project) -> Looked:
    lock = FileLock(project.work / "crew.lock")
    try:
        pid = json.loads(lock.note_path.read_bytes().split(b"\n", 1)[0])["pid"]
    except (OSError, ValueError, KeyError, TypeError):
        return (), ()  # nobody left a note: no crew, or one that ended as it should
    if lock.holder() is not None:
        return (Fact("crew", f"works now: {lock.holder()}"),), ()
    meaning = f"the crew of process {pid} was killed; the lock itself is free"
    repair = "take the lock and give it back, which clears the note"
    place = str(lock.note_path)
    return (), (Finding("crew.lock_stale", place, meaning, repair, Severity.NOTE, "crew"),)


def look_at_sprints(project: Project) -> Looked:
    found = [
        Finding(
            "sprint.half_closed",
            str(project.work / ARCHIVE / f"sprint-{number}"),
            "its queue is archived, but commit, tag or what moves on were not completed",
            "complete it, as oodatcaa sprint close would",
            action="close",
            subject=str(number),
        )
        for number in half_closed(project)
    ]
    closed = archived_sprints(project)
    found += _left_behind(project) if not found else []
    return (Fact("sprints", f"{len(closed)} closed"),), tuple(found)


def _left_behind(project: Project) -> list[Finding]:
    """Live folders of finished stories that the closing was to put away."""
    live = {story.id for story in project.board().stories}
    carried = project.work / "carried.json"
    moving = carried.read_text(encoding="utf-8") if carried.exists() else ""
    found = []
    for number, folder in archived_sprints(project).items():
        if folder.parent != project.work / ARCHIVE:
            continue
        left = [
            f"{kind}/{story.id}"
            for story in archived_board(folder).stories
            if is_finished(story) and story.id not in live and f'"{story.id}"' not in moving
            for kind in LIVE_FOLDERS
            if (project.work / kind / story.id).is_dir()
        ]
        if left:
            meaning = f"folders of finished stories of sprint {number}: {', '.join(left[:5])}"
            repair = f"move them to {folder}"
            code, place = "sprint.left_behind", str(project.work)
            found.append(
                Finding(code, place, meaning, repair, Severity.NOTE, "put_away", str(number))
            )
    return found
