"""Reading queue.journal (journal.py has the format): what others committed, as it comes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from oodatcaa.domain.board import Board
from oodatcaa.errors import StateError
from oodatcaa.state.changes import Change, Replica, Transaction
from oodatcaa.state.disk import read_from, read_text_from
from oodatcaa.state.lines import (
    PREFIX,
    REPAIR,
    RETRIES,
    START,
    Base,
    Head,
    Marker,
    NotYet,
    Position,
    crc_of,
    place_of,
)


class JournalReader:
    """Follows the file into `replica`. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._name = str(path)
        self.replica = Replica(Board(), seq=0, at=None)
        self.markers: tuple[Marker, ...] = ()
        self.last_event: tuple[int, int] | None = None
        self.since = 0
        self.base_seq = 0
        self.marker_is_last = False
        self._at: Position | None = None
        self._writable = True
        self._starts: list[int] = []  # where each transaction since the base begins
        self._base_event: tuple[int, int] | None = None

    @property
    def exists(self) -> bool:
        return self._at is not None

    @property
    def expected_entry(self) -> tuple[int, int] | None:
        """The log's last entry, if every event of this sprint is in it."""
        last = self.last_event
        return last if last is not None and last[0] > self.since else None

    def follow(self, *, locked: bool) -> None:
        """Take in what was committed since the last call.

        Without the lock a writer may be in the middle of its work, so what does not fit is read
        again; with it a torn last line is cut off. Raises StateError when the file is damaged.
        """
        tries = 2 if locked else RETRIES
        for attempt in range(tries):
            try:
                self._follow(locked)
                return
            except NotYet as problem:
                self._forget()
                if attempt == tries - 1:
                    raise self._damaged(problem) from problem
                if not locked:
                    time.sleep(0.002 * 2**attempt)

    def _follow(self, locked: bool) -> None:
        try:
            named = os.stat(self._name)  # noqa: PTH116 - a Path is slower by half
        except FileNotFoundError:
            if self._at is not None:
                raise StateError(
                    "queue.journal_missing",
                    f"{self.path} is gone; it held the queue's state",
                    hint=REPAIR,
                ) from None
            return
        if self._at is None:
            self._load()
        elif self._at.identity != (named.st_dev, named.st_ino):
            self._step_over()
        elif named.st_size < self._at.offset:
            raise NotYet(named.st_size, "the file is shorter than before")
        else:
            self._at.size = named.st_size
        self._read_new(locked)

    def _load(self) -> None:
        known = self.replica.seq
        handle = self._open()
        try:
            data = read_from(handle, 0)
            head_end = data.find(b"\n")
            head = self._head(data[: head_end + 1])
            base_end = head_end + 1 + head.bytes
            base = data[head_end + 1 : base_end]
            crc = crc_of(base[:-1], int(head.crc, 16), head_end + 1)
            try:
                board = Base.model_validate_json(base).board
            except ValidationError as error:
                raise NotYet(head_end + 1, str(error)) from error
            if head.seq < known and self.replica.at is not None:
                tail = data[base_end:]
                # A line that its writer had to roll back may have been seen: one less is fine.
                if head.seq + tail.count(b',"seq":') < known - 1:
                    raise StateError(
                        "queue.journal_older",
                        f"{self.path} was replaced by an older one (it was at {known})",
                        hint=REPAIR,
                    )
        except BaseException:
            os.close(handle)
            raise
        self.replica = Replica(board, seq=head.seq, at=head.at)
        self._adopt_head(head)
        self.last_event = head.last_event
        self.markers = head.markers
        self.marker_is_last = bool(head.markers)
        status = os.fstat(handle)
        identity = (status.st_dev, status.st_ino)
        self._at = Position(
            handle, base_end, crc, base_end, identity, durable=base_end, size=status.st_size
        )

    def _open(self) -> int:
        """A handle to write with where that is allowed: a reader of a read-only folder has none."""
        self._writable = os.access(self.path, os.W_OK)
        return os.open(self.path, os.O_RDWR if self._writable else os.O_RDONLY)

    def _head(self, line: bytes) -> Head:
        crc_of(line[:-1], 0, 0)
        try:
            return Head.model_validate_json(line)
        except ValidationError as error:
            raise NotYet(0, str(error)) from error

    def _adopt_head(self, head: Head) -> None:
        self.since, self.base_seq, self._base_event = head.since, head.seq, head.last_event
        self._starts = []

    def _step_over(self) -> None:
        """The file was replaced by one with a newer base: finish the old one, skip the base."""
        assert self._at is not None
        try:
            self._read_new(locked=False)
        except NotYet:
            self._forget()
            return self._load()
        handle = self._open()
        start = os.pread(handle, 4096, 0)
        head_end = start.find(b"\n") + 1
        try:
            head = self._head(start[:head_end])
        except NotYet:
            os.close(handle)
            raise
        same = (head.seq, head.revision) == (self.replica.seq, self.replica.revision)
        if not same or head.since != self.since:  # a sprint was closed: the base is another board
            os.close(handle)
            self._close_handle()
            return self._load()
        base_end = head_end + head.bytes
        crc = int(os.pread(handle, 8, head_end + 8), 16)
        status = os.fstat(handle)
        self._close_handle()
        self._adopt_head(head)
        self.markers, self.marker_is_last = head.markers, bool(head.markers)
        identity = (status.st_dev, status.st_ino)
        self._at = Position(
            handle, base_end, crc, base_end, identity, durable=base_end, size=status.st_size
        )
        return None

    def _read_new(self, locked: bool) -> None:
        at = self._at
        assert at is not None
        start = at.offset
        before = self._starts[-1] if self._starts and at.last else start
        data = read_text_from(at.handle, before)
        if data[: len(at.last)] != at.last:
            raise NotYet(before, "a line that was there is gone: its writer had to take it back")
        data = data[start - before :]
        # `splitlines` would look at every byte. The last part is torn, or nothing.
        for line in data.split(b"\n")[:-1]:
            crc = crc_of(line, at.crc, at.offset)
            owed, size = self._take(line, at.offset), len(line) + 1
            if not owed and at.durable == at.offset:
                at.durable += size
            at.offset += size
            at.crc = crc
        if locked and (len(data) > at.offset - start or not at.clean):
            self._clear_rest(at)

    def _clear_rest(self, at: Position) -> None:
        """Behind the last line there may be nothing but reserved space."""
        if read_from(at.handle, at.offset).strip(b"\0"):
            os.ftruncate(at.handle, at.offset)
        at.size, at.clean = os.fstat(at.handle).st_size, True

    def _take(self, line: bytes, offset: int) -> bool:
        """Whether the line has to be durable before anybody is told of it."""
        try:
            start = START.match(line, PREFIX)
            if start is None:
                if not line.startswith(b'"snap"', PREFIX):
                    raise ValueError("this is no transaction")
                self._take_marker(Marker.model_validate(json.loads(line)["snap"]))
                return False
            number, revision, moment, events, tasks = start.groups()
            seq, entries = int(number), int(events or 0)
            if seq != self.replica.seq + 1:
                raise ValueError(f"seq {seq} follows {self.replica.seq}")
            if tasks:
                self.replica.defer(
                    tasks.decode(),
                    partial(self._parse, line, offset),
                    seq=seq,
                    revision=int(revision),
                    at=datetime.fromisoformat(moment.decode()),
                )
            else:
                self.replica.apply(Transaction.model_validate_json(line))
        except (ValueError, KeyError) as error:
            raise NotYet(offset, str(error)) from error
        self._applied(seq, entries, offset, line[:PREFIX])
        return True

    def _parse(self, line: bytes, offset: int) -> Change:
        """The line's change alone: it stands between `change` and the last key, `events`."""
        start = line.index(b',"change":') + 10
        end = line.find(b',"events":[', start)
        try:
            return Change.model_validate_json(line[start : end if end >= 0 else -1])
        except ValidationError as error:  # its checksum was right: another version wrote it
            raise self._damaged(NotYet(offset, str(error))) from error

    def _take_marker(self, marker: Marker) -> None:
        self.markers = (*self.markers[-1:], marker)
        self.marker_is_last = True

    def _applied(self, seq: int, entries: int, offset: int, begins: bytes) -> None:
        assert self._at is not None
        self._at.last = begins
        self.marker_is_last = False
        self._starts.append(offset)
        if entries:
            self.last_event = (seq, entries - 1)

    def follow_sound_part(self) -> bool:
        """For repair: take in everything before the first damaged line; False = not even a base."""
        try:
            self._load()
            self._read_new(locked=False)
        except NotYet:
            return self._at is not None
        return True

    def transactions(self) -> Iterator[Transaction]:
        """Every transaction since the base, oldest first. Call `follow` before."""
        for line in self._lines():
            if line.startswith(b'"seq"', PREFIX):
                yield Transaction.model_validate_json(line)

    def _lines(self, start: int | None = None) -> list[bytes]:
        at = self._at
        if at is None:
            return []
        begin = at.base_end if start is None else start
        return read_from(at.handle, begin)[: at.offset - begin].splitlines(True)

    def event_lines(self) -> Iterator[tuple[int, bytes]]:
        """Seq and events, as one JSON line, of every transaction since the base that has any.

        Cut out of the journal's lines unparsed: `events` is their last key, and inside a JSON
        string its quotes would be escaped.
        """
        return _events_of(self._lines())

    def event_lines_from(self, place: tuple[int, int]) -> Iterator[tuple[int, bytes]] | None:
        """Like `event_lines`, only those of `place`'s transaction and later; None when some of
        these are older than the base."""
        seq = place[0]
        if seq > self.base_seq:
            number = seq - self.base_seq - 1
        elif place == self._base_event or seq == self.since == self.base_seq:
            number = 0
        else:
            return None
        return _events_of(self._lines(self._starts[number])) if number < len(self._starts) else None

    def board_at(self, seq: int) -> Board | None:
        """The board as it was after transaction `seq`; None when that is before the base."""
        if seq == self.replica.seq:
            return self.replica.board
        if self._at is None or not self.base_seq <= seq < self.replica.seq:
            return None
        start = read_from(self._at.handle, 0)[: self._at.base_end]
        base = start[start.find(b"\n") + 1 :]
        past = Replica(Base.model_validate_json(base).board, seq=self.base_seq, at=None)
        for done in self.transactions():
            if done.seq <= seq:
                past.apply(done)
        return past.board

    def close(self) -> None:
        self._close_handle()

    def _forget(self) -> None:
        self._close_handle()

    def _close_handle(self) -> None:
        if self._at is not None:
            os.close(self._at.handle)
            self._at = None

    def _damaged(self, problem: NotYet) -> StateError:
        line, column = place_of(self.path, problem.offset)
        return StateError(
            "queue.journal_unreadable",
            f"{self.path}:{line}:{column} can not be read: {problem.why.splitlines()[0]}",
            hint=REPAIR,
        )


def _events_of(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    for line in lines:
        start = START.match(line, PREFIX)
        if start is not None and start[4]:
            events = line[line.index(b',"events":[') : -2]
            yield int(start[1]), b'{"seq":%s%s}\n' % (start[1], events)
