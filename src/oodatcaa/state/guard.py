"""A journal that was rolled back or deleted is noticed by what was written from it.

Log, events.jsonl and snapshot are written after the line that they show is durable, so none of them
can know of a later transaction than the journal, unless somebody put an older journal in its
place. Going on from that one would hand out attempt and transaction numbers a second time. The
archive of a closed sprint is such a view too: with an older journal beside it that sprint would be
open again, whatever was restored together with the journal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from oodatcaa.domain.board import Board
from oodatcaa.errors import StateError
from oodatcaa.state import dialect
from oodatcaa.state.archive import EVENTS_FILE, newest_closed
from oodatcaa.state.following import JournalReader
from oodatcaa.state.lines import REPAIR
from oodatcaa.state.log import ARCHIVE, LOG_FILE, last_place_of, rotations
from oodatcaa.state.snapshot import QUEUE_FILE, QueueFile, intact

_TAIL = 4096
_SEQ = re.compile(rb'"seq": ?(\d+)')


@dataclass(frozen=True)
class Seen:
    """The last transaction that a view knows of; `data` is the snapshot as it was read."""

    seq: int
    path: Path
    data: bytes = b""

    def counts(self, board: Board) -> bool:
        """An edited snapshot, or one of another queue, is judged as an edit and proves nothing."""
        if self.path.name != QUEUE_FILE:
            return True
        if not intact(self.data):
            return False
        try:
            return QueueFile.model_validate_json(self.data).sprint == board.sprint
        except ValidationError:
            return False


def seen_by_views(work_dir: Path) -> tuple[Seen, ...]:
    """What each view knows of; reads the ends of log and events only.

    Called without the lock, do it before following the journal: the views may grow meanwhile.
    """
    try:
        data = (work_dir / QUEUE_FILE).read_bytes()
    except FileNotFoundError:
        data = b""
    found = _SEQ.search(data[:1000])
    closed = newest_closed(work_dir)
    archived = [Seen(closed.seq + 1, closed.folder)] if closed else []  # and its closing
    return (
        *archived,
        Seen(_logged(work_dir), work_dir / LOG_FILE),
        Seen(_last_seq(work_dir / EVENTS_FILE), work_dir / EVENTS_FILE),
        Seen(int(found[1]) if found else 0, work_dir / QUEUE_FILE, data),
    )


class Guard:
    """Follows `journal`; the first time it makes sure that it is not an older one put back."""

    def __init__(self, work_dir: Path, journal: JournalReader) -> None:
        self.journal = journal
        self._work_dir = work_dir
        self._passed = False

    def follow(self, *, locked: bool = False) -> None:
        seen = () if self._passed else seen_by_views(self._work_dir)
        self.journal.follow(locked=locked)
        if not self._passed:
            refuse_rolled_back(self.journal, seen)
            self._passed = self.journal.exists

    def begin_again(self) -> None:
        self._passed = False


def refuse_rolled_back(journal: JournalReader, seen: tuple[Seen, ...]) -> None:
    """Raises StateError `queue.journal_older` or `queue.journal_missing`, naming the file."""
    if not journal.exists:
        return _refuse_deleted(journal, seen)
    for one in seen:
        if one.seq > journal.replica.seq and one.counts(journal.replica.board):
            view = one.path.relative_to(journal.path.parent)
            raise StateError(
                "queue.journal_older",
                f"{journal.path} was replaced by an older one: it ends at transaction "
                f"{journal.replica.seq}, {view} knows of {one.seq}",
                hint=REPAIR,
            )
    return None


def _refuse_deleted(journal: JournalReader, seen: tuple[Seen, ...]) -> None:
    """A lone snapshot was brought along by somebody; with a history beside it, it was not.

    Only what was seen before the journal was looked for counts: it may have been made since.
    """
    needing = [one.path for one in seen if one.path.name in (LOG_FILE, EVENTS_FILE) and one.seq]
    needing += _of_a_closed_sprint(seen)
    events = journal.path.parent / EVENTS_FILE
    if events.exists() and not journal.path.exists():
        needing.append(events)
    if needing:
        view = needing[0]
        raise StateError(
            "queue.journal_missing",
            f"{journal.path} is gone, but {view} needs it",
            hint=REPAIR,
        )


def _of_a_closed_sprint(seen: tuple[Seen, ...]) -> list[Path]:
    """The archive beside a lone snapshot that was written before its sprint was closed."""
    snapshot = next((one.seq for one in seen if one.data), None)
    views = (LOG_FILE, EVENTS_FILE, QUEUE_FILE)
    closed = [one for one in seen if one.path.name not in views]
    return [one.path for one in closed if snapshot is not None and snapshot < one.seq]


def _logged(work_dir: Path) -> int:
    path = work_dir / LOG_FILE
    place = _last_place(path) if path.exists() else None
    if place is None:
        archived = rotations(work_dir / ARCHIVE)
        place = last_place_of(archived[-1]) if archived else None
    return place[0] if place else 0


def _last_place(path: Path) -> tuple[int, int] | None:
    """Seq and index of a log's last entry, reading no more of its end than needed."""
    size, reach = path.stat().st_size, _TAIL
    with path.open("rb") as file:
        while True:
            file.seek(max(0, size - reach))
            found = dialect.last_place(file.read().decode("utf-8", "replace"))
            if found is not None or reach >= size:
                return found[0] if found else None
            reach *= 8


def _last_seq(path: Path) -> int:
    """Of the last whole line of events.jsonl; 0 where there is none."""
    if not path.exists():
        return 0
    size, reach = path.stat().st_size, _TAIL
    with path.open("rb") as file:
        while True:
            file.seek(max(0, size - reach))
            lines = file.read().split(b"\n")[:-1]
            whole = lines if reach >= size else lines[1:]
            if whole or reach >= size:
                found = re.match(rb'\{"seq": ?(\d+)', whole[-1]) if whole else None
                return int(found[1]) if found else 0
            reach *= 8
