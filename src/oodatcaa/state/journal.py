"""queue.journal: the one commit point.

The file starts with a head and the whole board at some `seq`, then holds one line per transaction
and one per snapshot written. Every line is JSON and carries a CRC-32 of its bytes that starts from
the line before, so a line that is missing, moved or rolled back after a reader saw it is noticed.
A new base is written to a temp file and renamed: at every instant the named file is complete in
itself, and whoever still reads the old one can finish it and step over.
"""

from __future__ import annotations

import json
import os
import re
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from oodatcaa.domain.base import Record, Utc
from oodatcaa.domain.board import Board
from oodatcaa.errors import StateError
from oodatcaa.state.changes import Replica, Transaction
from oodatcaa.state.disk import read_from, replace, sync, write_at, write_temp

REPAIR = "run: oodatcaa doctor --repair (it keeps the original)"
_PREFIX = 18  # {"crc":"xxxxxxxx",
_RETRIES = 5
_START = re.compile(
    rb'"seq":(\d+),"revision":(\d+),"at":"([^"]+)"(?:,"entries":(\d+))?(?:,"tasks":"([^"]*)")?'
)


class Marker(Record):
    """A snapshot that was (or was about to be) written: the seq it covers, the file's sha256."""

    seq: int
    sha256: str


class Head(Record):
    head: int = 1
    seq: int
    revision: int
    at: Utc | None
    since: int
    """The sprint's first transaction is later than this seq."""
    last_event: tuple[int, int] | None
    markers: tuple[Marker, ...]
    bytes: int
    crc: str = ""


class _Base(Record):
    board: Board
    crc: str


@dataclass
class _Position:
    handle: int
    offset: int
    crc: int
    base_end: int
    identity: tuple[int, int]


class _NotYet(Exception):
    """The file does not fit together: either a writer is at work, or it is damaged."""

    def __init__(self, offset: int, why: str) -> None:
        super().__init__(why)
        self.offset = offset
        self.why = why


class Journal:
    """Follows the file into `replica`; appends to it while the caller holds the queue's lock."""

    def __init__(self, path: Path, *, growth: int = 4 << 20) -> None:
        self.path = path
        self._name = str(path)
        self._growth = growth
        self.replica = Replica(Board(), seq=0, at=None)
        self.markers: tuple[Marker, ...] = ()
        self.last_event: tuple[int, int] | None = None
        self.since = 0
        self.base_seq = 0
        self.marker_is_last = False
        self._at: _Position | None = None

    @property
    def exists(self) -> bool:
        return self._at is not None

    @property
    def grown(self) -> bool:
        """Whether a new base would save more reading than it costs to write."""
        at = self._at
        return at is not None and at.offset - at.base_end > max(self._growth, 2 * at.base_end)

    @property
    def expected_entry(self) -> tuple[int, int] | None:
        """The log's last entry, if every event of this sprint is in it."""
        last = self.last_event
        return last if last is not None and last[0] > self.since else None

    # reading ------------------------------------------------------------------------------

    def follow(self, *, locked: bool) -> None:
        """Take in what was committed since the last call.

        Without the lock a writer may be in the middle of its work, so what does not fit is read
        again; with it a torn last line is cut off. Raises StateError when the file is damaged.
        """
        tries = 2 if locked else _RETRIES
        for attempt in range(tries):
            try:
                self._follow(locked)
                return
            except _NotYet as problem:
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
        elif self._at.offset == named.st_size:
            return
        self._read_new(locked)

    def _load(self) -> None:
        known = self.replica.seq
        handle = os.open(self.path, os.O_RDWR if os.access(self.path, os.W_OK) else os.O_RDONLY)
        try:
            data = read_from(handle, 0)
            head_end = data.find(b"\n")
            head = self._head(data[: head_end + 1])
            base_end = head_end + 1 + head.bytes
            base = data[head_end + 1 : base_end]
            crc = _crc_of(base, int(head.crc, 16), head_end + 1)
            try:
                board = _Base.model_validate_json(base).board
            except ValidationError as error:
                raise _NotYet(head_end + 1, str(error)) from error
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
        self._at = _Position(handle, base_end, crc, base_end, (status.st_dev, status.st_ino))

    def _head(self, line: bytes) -> Head:
        _crc_of(line, 0, 0)
        try:
            return Head.model_validate_json(line)
        except ValidationError as error:
            raise _NotYet(0, str(error)) from error

    def _adopt_head(self, head: Head) -> None:
        self.since, self.base_seq = head.since, head.seq

    def _step_over(self) -> None:
        """The file was replaced by one with a newer base: finish the old one, skip the base."""
        assert self._at is not None
        try:
            self._read_new(locked=False)
        except _NotYet:
            self._forget()
            return self._load()
        handle = os.open(self.path, os.O_RDWR if os.access(self.path, os.W_OK) else os.O_RDONLY)
        start = os.pread(handle, 4096, 0)
        head_end = start.find(b"\n") + 1
        try:
            head = self._head(start[:head_end])
        except _NotYet:
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
        self._at = _Position(handle, base_end, crc, base_end, (status.st_dev, status.st_ino))
        return None

    def _read_new(self, locked: bool) -> None:
        at = self._at
        assert at is not None
        size = os.fstat(at.handle).st_size
        if size == at.offset:
            return
        if size < at.offset:
            raise _NotYet(size, "the file is shorter than before")
        data = read_from(at.handle, at.offset)
        for line in data.splitlines(keepends=True):
            if not line.endswith(b"\n") or b"\0" in line:
                break  # torn: its writer died or is still at it
            crc = _crc_of(line, at.crc, at.offset)
            self._take(line, at.offset)
            at.offset += len(line)
            at.crc = crc
        if locked and at.offset < size:
            os.ftruncate(at.handle, at.offset)

    def _take(self, line: bytes, offset: int) -> None:
        try:
            if line.startswith(b'"snap"', _PREFIX):
                self._take_marker(Marker.model_validate(json.loads(line)["snap"]))
                return
            start = _START.match(line, _PREFIX)
            if start is None:
                raise ValueError("this is no transaction")
            seq, entries = int(start[1]), int(start[4] or 0)
            if seq != self.replica.seq + 1:
                raise ValueError(f"seq {seq} follows {self.replica.seq}")
            if start[5]:
                self.replica.defer(
                    start[5].decode(),
                    partial(self._parse, line, offset),
                    seq=seq,
                    revision=int(start[2]),
                    at=datetime.fromisoformat(start[3].decode()),
                )
            else:
                self.replica.apply(Transaction.model_validate_json(line))
        except (ValueError, KeyError) as error:
            raise _NotYet(offset, str(error)) from error
        self._applied(seq, entries)

    def _parse(self, line: bytes, offset: int) -> Transaction:
        try:
            return Transaction.model_validate_json(line)
        except ValidationError as error:  # its checksum was right: another version wrote it
            raise self._damaged(_NotYet(offset, str(error))) from error

    def _take_marker(self, marker: Marker) -> None:
        self.markers = (*self.markers[-1:], marker)
        self.marker_is_last = True

    def _applied(self, seq: int, entries: int) -> None:
        self.marker_is_last = False
        if entries:
            self.last_event = (seq, entries - 1)

    def transactions(self) -> Iterator[Transaction]:
        """Every transaction since the base, oldest first. Call `follow` before."""
        for line in self._lines():
            if line.startswith(b'"seq"', _PREFIX):
                yield Transaction.model_validate_json(line)

    def _lines(self) -> list[bytes]:
        at = self._at
        if at is None:
            return []
        return read_from(at.handle, at.base_end)[: at.offset - at.base_end].splitlines(True)

    def event_lines(self) -> Iterator[tuple[int, bytes]]:
        """Seq and events, as one JSON line, of every transaction since the base that has any.

        Cut out of the journal's lines unparsed: `events` is their last key, and inside a JSON
        string its quotes would be escaped.
        """
        for line in self._lines():
            start = _START.match(line, _PREFIX)
            if start is not None and start[4]:
                events = line[line.index(b',"events":[') : -2]
                yield int(start[1]), b'{"seq":%s%s}\n' % (start[1], events)

    def board_at(self, seq: int) -> Board | None:
        """The board as it was after transaction `seq`; None when that is before the base."""
        if seq == self.replica.seq:
            return self.replica.board
        if self._at is None or not self.base_seq <= seq < self.replica.seq:
            return None
        start = read_from(self._at.handle, 0)[: self._at.base_end]
        base = start[start.find(b"\n") + 1 :]
        past = Replica(_Base.model_validate_json(base).board, seq=self.base_seq, at=None)
        for done in self.transactions():
            if done.seq <= seq:
                past.apply(done)
        return past.board

    # writing, under the lock --------------------------------------------------------------

    def commit(self, done: Transaction) -> None:
        """Make `done` durable and apply it. Raises StateError with nothing changed."""
        body = done.model_dump_json(exclude_defaults=True).encode()
        self._append(body, "journal", durable=True)
        self.replica.apply(done)
        self._applied(done.seq, done.entries)

    def mark(self, marker: Marker) -> None:
        """Note which snapshot is about to be renamed into place."""
        body = json.dumps({"snap": marker.model_dump()}, separators=(",", ":")).encode()
        self._append(body, "marker", durable=False)
        self._take_marker(marker)

    def _append(self, body: bytes, name: str, *, durable: bool) -> None:
        at = self._at
        assert at is not None
        line, crc = _framed(body, at.crc)
        try:
            write_at(at.handle, line, at.offset, name)
            if durable:
                sync(at.handle, name)
        except OSError as error:
            raise self._rolled_back(error) from error
        at.offset += len(line)
        at.crc = crc

    def _rolled_back(self, error: OSError) -> StateError:
        """Cut off what may have been written of a line that did not become durable."""
        at = self._at
        assert at is not None
        note = "nothing was changed"
        try:
            os.ftruncate(at.handle, at.offset)
        except OSError as second:
            note = f"and its last line could not be cut off again: {second.strerror}"
        return StateError(
            "queue.write_failed",
            f"{self.path}: {error.strerror or error}; {note}",
            hint="free space or make the folder writable, then repeat the command",
        )

    def rebase(
        self,
        replica: Replica | None = None,
        *,
        since: int | None = None,
        then: Transaction | None = None,
    ) -> None:
        """Replace the file by one that starts at the newest board (or at `replica`'s).

        `then` is committed with it. The caller has made durable elsewhere what must outlive the
        old lines: their events.
        """
        newest = replica or self.replica
        since = self.since if since is None else since
        body = b'{"board":' + newest.board.model_dump_json().encode() + b"}"
        head = Head(
            seq=newest.seq,
            revision=newest.revision,
            at=newest.at,
            since=since,
            last_event=self.last_event,
            markers=self.markers,
            bytes=len(_framed(body, 0)[0]),
        )
        data, crc = _framed(head.model_dump_json(exclude={"crc"}).encode(), 0)
        line, crc = _framed(body, crc)
        data += line
        end = len(data)
        if then is not None:
            line, crc = _framed(then.model_dump_json(exclude_defaults=True).encode(), crc)
            data += line
        temp = self.path.with_name(f".{self.path.name}.tmp")
        write_temp(temp, data, "rebase")
        replace(temp, self.path, "rebase")
        self._close_handle()
        handle = os.open(self.path, os.O_RDWR)
        status = os.fstat(handle)
        self._at = _Position(handle, len(data), crc, end, (status.st_dev, status.st_ino))
        self.replica, self.base_seq, self.since = newest, newest.seq, since
        self.marker_is_last = bool(self.markers)
        if then is not None:
            self.replica.apply(then)
            self._applied(then.seq, then.entries)

    # the rest -----------------------------------------------------------------------------

    def close(self) -> None:
        self._close_handle()

    def _forget(self) -> None:
        self._close_handle()

    def _close_handle(self) -> None:
        if self._at is not None:
            os.close(self._at.handle)
            self._at = None

    def _damaged(self, problem: _NotYet) -> StateError:
        line, column = _place(self.path, problem.offset)
        return StateError(
            "queue.journal_unreadable",
            f"{self.path}:{line}:{column} can not be read: {problem.why.splitlines()[0]}",
            hint=REPAIR,
        )


def _framed(body: bytes, previous: int) -> tuple[bytes, int]:
    rest = body[1:]
    crc = zlib.crc32(rest, previous)
    return b'{"crc":"%08x",' % crc + rest + b"\n", crc


def _crc_of(line: bytes, previous: int, offset: int) -> int:
    """The line's checksum. Raises _NotYet when the bytes or the line before do not fit it."""
    crc = zlib.crc32(line[_PREFIX:-1], previous)
    if line[:8] != b'{"crc":"' or line[8:16] != b"%08x" % crc:
        raise _NotYet(offset, "the checksum does not fit")
    return crc


def _place(path: Path, offset: int) -> tuple[int, int]:
    """Line and column (from 1) of what is wrong in the line at `offset`."""
    data = path.read_bytes()
    number = data.count(b"\n", 0, offset) + 1
    line = data[offset:].split(b"\n", 1)[0]
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return number, error.colno
    except UnicodeDecodeError as error:
        return number, error.start + 1
    return number, 1


def clamp(moment: datetime, last: datetime | None) -> datetime:
    """Time never runs backwards in the journal, whatever the machine's clock does."""
    return moment if last is None or moment >= last else last
