"""What is written from the journal for others: SPRINT_QUEUE.json and events.jsonl."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import PositiveInt, ValidationError

from oodatcaa import __version__
from oodatcaa.domain.base import Record
from oodatcaa.domain.board import Event
from oodatcaa.domain.ports import Logged
from oodatcaa.errors import StateError
from oodatcaa.kit.files import write_atomic
from oodatcaa.state.disk import replace, sync, write_at, write_temp
from oodatcaa.state.journal import Journal
from oodatcaa.state.lines import REPAIR, Marker
from oodatcaa.state.snapshot import MADE_BY, QUEUE_FILE, SCHEMA_FILE, Renderer, temp_of

_Stat = tuple[int, int, int, int, int]
_TICK_NS = 20_000_000
"""A file system's clock may stand still for so long: two writes can carry one time."""
_RENAMED_NS = 1_000_000_000
"""From a snapshot's last write to its rename: an fsync lies between."""
QUIET_SECONDS = 0.1
PATIENCE_SECONDS = 2.0


class QueueView:
    """SPRINT_QUEUE.json: knows what this program wrote, and so what it did not."""

    def __init__(self, work_dir: Path, journal: Journal) -> None:
        self.path = work_dir / QUEUE_FILE
        self._name = str(self.path)
        self._schema = work_dir / SCHEMA_FILE
        self._journal = journal
        self._renderer = Renderer()
        self._known: _Stat | None = None
        self._dealt_with: _Stat | None = None
        self._seq = -1
        self._exact = False
        self._seen_at = 0.0
        self._ours = False
        self._published = False
        self._fresh = False
        self.gone = False
        """Whether `touched` found no file although there is a journal to write it from."""

    @property
    def deleted(self) -> bool:
        """Whether a file that is `gone` had been in place: not one whose first writer died."""
        waiting = self._journal.marker_is_last and temp_of(self.path).exists()
        return self.gone and len(self._journal.markers) > int(waiting)

    @property
    def behind(self) -> bool:
        """Whether this process committed something that the file may not show yet."""
        return self._ours and not (self._exact and self._seq == self._journal.replica.seq)

    def committed(self) -> None:
        self._ours = True

    def touched(self) -> bool:
        """Whether the file is there and is not what this program wrote last."""
        try:
            status = _stat(self._name)
        except FileNotFoundError:
            self.settled()
            self.gone = self._journal.exists
            return False
        self.gone = False
        if status == self._known and not self._fresh:
            return False
        self._dealt_with = status
        newest = self._journal.markers[-1] if self._journal.markers else None
        if newest is not None and newest.file == status[1:4] and _untouched(status):
            self._remember(status, newest.seq, newest.exact)
            return False
        data = self.path.read_bytes()
        marker = self._written(hashlib.sha256(data).hexdigest())
        if marker is None:
            return True
        self._remember(status, marker.seq, b'"exact": true' in data[:1000])
        return False

    def content(self) -> bytes:
        """What lies there. A script that writes without the lock gets time to come to its end."""
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            self._dealt_with = status = _stat(self.path)
            data = self.path.read_bytes()
            age = abs(time.time() - status[2] / 1e9)
            if _is_json(data) or age > QUIET_SECONDS or time.monotonic() > end:
                return data
            time.sleep(QUIET_SECONDS / 5)

    @property
    def left_behind(self) -> bool:
        """Whether its last writer died before it could write what it had committed."""
        return self._known is not None and self._seq != self._journal.replica.seq

    def _written(self, digest: str) -> Marker | None:
        markers = self._journal.markers
        if markers and markers[-1].sha256 == digest:
            return markers[-1]
        # Died between announcing a snapshot and renaming it: the one before is still in place.
        waiting = self._journal.marker_is_last and temp_of(self.path).exists()
        if waiting and len(markers) == 2 and markers[0].sha256 == digest:
            return markers[0]
        return None

    def settled(self) -> None:
        """What lies there has been dealt with and may be overwritten."""
        self._known, self._seq, self._exact = None, -1, False

    def due(self, seconds: float) -> bool:
        """Whether a lagging file must be written now: too old, or still claiming to be exact."""
        return self.due_in(seconds) <= 0

    def due_in(self, seconds: float) -> float:
        """How long until it is `due`, as far as is known. What this process committed and the file
        does not show is younger than the file: a transaction begins by looking at it."""
        if self._exact or self._known is None:
            return 0.0
        return self._seen_at + seconds - time.monotonic()

    def write(self, *, exact: bool) -> None:
        """Bring the file up to the journal. Under the lock. Raises OSError, StateError."""
        replica = self._journal.replica
        if self._seq == replica.seq and self._exact == exact and self._known is not None:
            return
        self._publish_schema()
        rendered = self._renderer.render(replica.board, seq=replica.seq, exact=exact)
        temp = temp_of(self.path)
        write_temp(temp, rendered.data, "snapshot")
        file = _stat(temp)[1:4]
        self._journal.mark(Marker(seq=replica.seq, sha256=rendered.sha256, exact=exact, file=file))
        if self._just_touched():
            return  # somebody wrote it since we looked: the next transaction settles that
        replace(temp, self.path, "snapshot", durable=False)
        self._remember(_stat(self.path), replica.seq, exact)

    def _publish_schema(self) -> None:
        """The schema beside the file is this version's; looked at once per process."""
        if self._published and self._schema.exists():
            return
        made = f"{MADE_BY} {__version__}".encode()
        try:
            with self._schema.open("rb") as file:
                self._published = made in file.read(400)
        except FileNotFoundError:
            self._published = False
        if not self._published:
            from oodatcaa.state.schema import schema_text

            write_atomic(self._schema, schema_text(), name="schema")
            self._published = True

    def _just_touched(self) -> bool:
        try:
            return _stat(self.path) != self._dealt_with
        except FileNotFoundError:
            return False

    def _remember(self, status: _Stat, seq: int, exact: bool) -> None:
        self._known, self._seq, self._exact = status, seq, exact
        self._fresh = _ticking(status)
        self._dealt_with = status
        self._seen_at = time.monotonic()


def _stat(path: Path | str) -> _Stat:
    status = os.stat(path)  # noqa: PTH116 - asked for at every transaction; a str is faster
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size, status.st_ctime_ns


def _ticking(status: _Stat) -> bool:
    """Whether another write in this moment could leave the file's times as they are."""
    return abs(time.time_ns() - status[2]) < _TICK_NS


def _untouched(status: _Stat) -> bool:
    """Whether nobody can have changed the content and put its time back: the last change of the
    entry is our rename, and the file system keeps times finer than seconds."""
    renamed = 0 <= status[4] - status[2] < _RENAMED_NS
    return renamed and status[2] % 1_000_000_000 != 0 and not _ticking(status)


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


class Events(Record):
    """A line of events.jsonl: the events of one transaction."""

    seq: PositiveInt
    events: tuple[Event, ...]

    def logged(self) -> Iterator[Logged]:
        for index, event in enumerate(self.events):
            yield Logged.assembled({"seq": self.seq, "index": index, "event": event})


class EventFile:
    """events.jsonl: the sprint's events that the journal no longer holds, a line per transaction.

    Filled just before the journal gets a new base, so it costs nothing per transaction, and a
    journal that is full of heartbeats does not have to be kept for the few events in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def extend(self, lines: Iterable[tuple[int, bytes]]) -> None:
        """Append those of `lines` (see Journal.event_lines) that it lacks, durably."""
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            end, last = self._end(handle)
            os.ftruncate(handle, end)
            write_at(handle, b"".join(line for seq, line in lines if seq > last), end, "events")
            sync(handle, "events")
        finally:
            os.close(handle)

    def _end(self, handle: int) -> tuple[int, int]:
        """Where the last whole line ends, and its seq."""
        size = os.fstat(handle).st_size
        reach = 1 << 16
        while True:
            start = max(0, size - reach)
            data = os.pread(handle, size - start, start)
            end = data.rfind(b"\n") + 1
            begin = data.rfind(b"\n", 0, end - 1) + 1 if end else 0
            if end and (begin or start == 0):
                return start + end, self._parse(data[begin:end], "its last line").seq
            if start == 0:
                return 0, 0
            reach *= 4

    def read(self, since: int) -> Iterator[Logged]:
        """Its events later than transaction `since`. Raises StateError for a damaged line."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return  # torn: its writer had not moved the journal on yet
                one = self._parse(line, f"line {number}")
                if one.seq > since:
                    yield from one.logged()

    def _parse(self, line: bytes, where: str) -> Events:
        try:
            return Events.model_validate_json(line)
        except ValidationError as error:
            raise StateError(
                "queue.events_unreadable",
                f"{self.path}, {where}: {error.errors()[0]['msg']}",
                hint=REPAIR,
            ) from error


def parsed(lines: Iterable[tuple[int, bytes]]) -> Iterator[Logged]:
    for _, line in lines:
        yield from Events.model_validate_json(line).logged()
