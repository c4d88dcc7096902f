"""Outside hands: what an editor, git or a script left in SPRINT_QUEUE.json.

It is taken over as an audited manual transaction when it is valid, was made from a state that the
journal still knows, does not collide with what happened since, and the rules allow it. Otherwise
the file is kept aside with every reason beside it, and the state goes on from the journal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from oodatcaa.domain.board import Board, Event, EventKind
from oodatcaa.domain.task import Task
from oodatcaa.errors import StateError
from oodatcaa.kit.files import write_atomic
from oodatcaa.state.changes import (
    Change,
    Replica,
    Transaction,
    by_id,
    difference,
    structure_problems,
)
from oodatcaa.state.journal import Journal
from oodatcaa.state.lines import REPAIR
from oodatcaa.state.snapshot import QUEUE_FILE, QueueFile, intact

Legal = Callable[[Board, Board], tuple[str, ...]]
_LISTED = 50
_CONFLICT = re.compile(r"^(<{7}|\|{7}|={7}|>{7})( |$)")


def accept_structure(old: Board, new: Board) -> tuple[str, ...]:
    """The default judge: anything whose ids fit together (which is checked anyway)."""
    del old, new
    return ()


@dataclass(frozen=True)
class Settled:
    """What to commit about an outside hand: its change, or only the record of its refusal."""

    change: Change
    events: tuple[Event, ...]
    at: datetime
    notice: str


class OutsideHands:
    def __init__(self, work_dir: Path, journal: Journal, legal: Legal) -> None:
        self._work_dir = work_dir
        self._path = work_dir / QUEUE_FILE
        self._journal = journal
        self._legal = legal

    def settle(self, data: bytes, now: datetime) -> Settled | None:
        """Under the lock, the file holds `data`, not ours: decide. None = it says nothing new.

        Raises StateError when there is no journal to go on from.
        """
        by = _owner(self._path)
        if not self._journal.exists:
            return self._adopt(data, by, now)
        found, problems = _read(data)
        if found is not None:
            change, problems = self._judge(found)
            if not problems:
                return None if change.empty else self._taken(change, found.seq, by, now)
        return self._refuse(data, problems, by, now)

    # with a journal -----------------------------------------------------------------------

    def _judge(self, found: QueueFile) -> tuple[Change, list[str]]:
        replica = self._journal.replica
        if found.seq > replica.seq:
            why = f"seq: it says {found.seq}, but the journal ends at {replica.seq}"
            return Change(), [f"{why}; it comes from another queue, or the journal was replaced"]
        # The seq at which a sprint was closed names two boards: the old one's last, the new one's
        # first. No file of the new one was ever written with it.
        closed = self._journal.since > 0 and found.seq <= self._journal.since
        origin = None if closed else self._journal.board_at(found.seq)
        if origin is None:
            return Change(), [_older(found.seq, replica.seq)]
        wanted = found.board()
        problems = structure_problems(wanted)
        if problems:
            return Change(), problems
        change = difference(origin, wanted)
        if found.seq == replica.seq:
            return change, list(self._legal(replica.board, wanted)) if not change.empty else []
        if change.empty:
            return change, [_older(found.seq, replica.seq)]
        return self._merged(origin, wanted, change, found.seq)

    def _merged(
        self, origin: Board, wanted: Board, change: Change, seq: int
    ) -> tuple[Change, list[str]]:
        """An edit of an older state: fine when nothing that it touches has moved since."""
        replica = self._journal.replica
        moved = difference(origin, replica.board).touched() & change.touched()
        moved &= difference(wanted, replica.board).touched()  # the same change twice is none
        problems = [
            f"{what}: it was changed here since seq {seq}, from which the file was made"
            for what in sorted(moved)
        ]
        if problems:
            return change, problems
        merged = _after(replica.board, change)
        problems = structure_problems(merged) or list(self._legal(replica.board, merged))
        return difference(replica.board, merged), problems

    def _taken(self, change: Change, seq: int, by: str, now: datetime) -> Settled:
        old = by_id(self._journal.replica.board)
        events = [_manual(task.id, old.get(task.id), task, by, now) for task in change.tasks]
        events += [_manual(key, old.get(key), None, by, now) for key in change.removed]
        rest = sorted(change.touched() & {"sprint", "offers", "order"})
        if rest:
            text = f"{QUEUE_FILE} was edited: {', '.join(rest)}"
            events.append(_event(EventKind.MANUAL, by, now, text))
        what = ", ".join(event.subject for event in events[:5])
        notice = f"taken over from {QUEUE_FILE}, edited by {by} at seq {seq}: {what}"
        return Settled(change, tuple(events), now, notice)

    def _refuse(self, data: bytes, problems: list[str], by: str, now: datetime) -> Settled:
        aside = self._set_aside(data, problems, now)
        shown = problems[:_LISTED]
        if len(problems) > _LISTED:
            shown.append(f"and {len(problems) - _LISTED} more in {aside.stem}.errors.txt")
        text = f"{QUEUE_FILE} was changed from outside and refused; it is kept as {aside.name}"
        event = _event(EventKind.REFUSED, by, now, text, tuple(shown))
        return Settled(Change(), (event,), now, f"{text}: {problems[0]}")

    def _set_aside(self, data: bytes, problems: list[str], now: datetime) -> Path:
        stem = f"{self._path.stem}.rejected-{now:%Y-%m-%dT%H-%M-%SZ}"
        aside, number = self._work_dir / f"{stem}.json", 1
        while aside.exists() and aside.read_bytes() != data:
            number += 1
            aside = self._work_dir / f"{stem}-{number}.json"
        write_atomic(aside, data, name="aside")
        listed = "".join(f"{one}\n" for one in problems)
        write_atomic(aside.with_suffix(".errors.txt"), listed, name="errors")
        return aside

    # without one --------------------------------------------------------------------------

    def _adopt(self, data: bytes, by: str, now: datetime) -> Settled | None:
        """The first queue of a folder, put there by somebody: there is no history beside it."""
        found, problems = _read(data)
        if found is not None:
            wanted = found.board()
            problems = structure_problems(wanted)
            if not problems and not intact(data):
                problems = list(self._legal(Board(), wanted))
        if found is None or problems:
            raise StateError(
                "queue.unreadable",
                f"{self._path} can not be used: {problems[0]}",
                hint=REPAIR,
                details=problems,
            )
        start = Replica(Board(revision=found.revision), seq=found.seq, at=None)
        self._journal.rebase(start, since=found.seq)
        text = f"{QUEUE_FILE} was taken over: there was no journal beside it"
        details = (f"{len(wanted.stories)} stories, {len(wanted.subtasks)} subtasks",)
        event = _event(EventKind.MANUAL, by, now, text, details)
        change = difference(Board(revision=found.revision), wanted)
        return Settled(change, (event,), now, text)


def _older(seq: int, newest: int) -> str:
    return (
        f"seq: it is the queue as it was at {seq}; {newest - seq} later transactions would be lost"
    )


def _after(board: Board, change: Change) -> Board:
    replica = Replica(board, seq=0, at=None)
    moment = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    revision = max(board.revision, 1)
    replica.apply(Transaction(seq=1, revision=revision, at=moment, change=change))
    return replica.board.evolve(revision=board.revision)


def _manual(key: str, old: Task | None, new: Task | None, by: str, now: datetime) -> Event:
    before = old.status.value if old else None
    after = new.status.value if new else None
    if old is None:
        text = f"{QUEUE_FILE} was edited: {key} is new"
    elif new is None:
        text = f"{QUEUE_FILE} was edited: {key} is gone"
    else:
        text = f"{QUEUE_FILE} was edited"
    details = tuple(_field_changes(old, new)) if old and new else ()
    changed = before != after
    return Event(
        kind=EventKind.MANUAL,
        at=now,
        actor=by,
        subject=key,
        before=before if changed else None,
        after=after if changed else None,
        text=text,
        details=details,
    )


def _field_changes(old: Task, new: Task) -> Iterator[str]:
    was, now = old.model_dump(mode="json"), new.model_dump(mode="json")
    for name in now:
        if was.get(name) != now[name]:
            yield f"{name}: {_brief(was.get(name))} -> {_brief(now[name])}"


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:78] + " …"


def _event(
    kind: EventKind, by: str, now: datetime, text: str, details: tuple[str, ...] = ()
) -> Event:
    return Event(kind=kind, at=now, actor=by, subject="sprint", text=text, details=details)


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except (KeyError, OSError):
        return "somebody"


def _read(data: bytes) -> tuple[QueueFile | None, list[str]]:
    """The document, or everything that keeps it from being one."""
    from oodatcaa.state.schema import schema_problems

    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return None, [f"byte {error.start + 1}: it is not UTF-8 text"]
    marks = [
        f"line {number}: a conflict marker of git: {line[:60]}"
        for number, line in enumerate(text.splitlines(), 1)
        if _CONFLICT.match(line)
    ]
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        repeated.extend(f"the key {key!r} is given twice" for key in keys if keys.count(key) > 1)
        return dict(pairs)

    try:
        document = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        return None, [*marks, f"line {error.lineno}, column {error.colno}: {error.msg}"]
    except RecursionError:
        return None, ["it is nested too deeply"]
    problems = [*marks, *dict.fromkeys(repeated), *schema_problems(document)]
    return (None, problems) if problems else (QueueFile.model_validate(document), [])
