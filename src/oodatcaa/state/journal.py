"""queue.journal: the one commit point.

The file starts with a head and the whole board at some `seq`, then holds one line per transaction
and one per snapshot written. Every line is JSON and carries a CRC-32 of its bytes that starts from
the line before, so a line that is missing, moved or rolled back after a reader saw it is noticed.
A new base is written to a temp file and renamed: at every instant the named file is complete in
itself, and whoever still reads the old one can finish it and step over.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path

from oodatcaa.errors import StateError
from oodatcaa.state.changes import Replica, Transaction
from oodatcaa.state.disk import replace, sync, sync_data, write_at, write_temp
from oodatcaa.state.following import JournalReader
from oodatcaa.state.lines import PREFIX, Head, Marker, Position, framed

FEW = 8
"""So many appends a process makes before it reserves space: a command never does."""
RESERVE = 1 << 18


class Journal(JournalReader):
    """Appends to the file that it follows while the caller holds the queue's lock."""

    def __init__(self, path: Path, *, growth: int = 4 << 20) -> None:
        super().__init__(path)
        self._growth = growth
        self._growths = 0
        self._reserved = False

    @property
    def grown(self) -> bool:
        """Whether a new base would save more reading than it costs to write."""
        at = self._at
        return at is not None and at.offset - at.base_end > max(self._growth, 2 * at.base_end)

    def commit(self, done: Transaction, *, durable: bool = True) -> None:
        """Write `done` and apply it. Raises StateError with nothing changed.

        Without `durable` the caller owes a `harden` before it tells anybody. That may be after the
        lock is free: an fsync makes every line before its own durable too, so whoever builds on
        this one can not outlive it.
        """
        body = done.model_dump_json(exclude_defaults=True).encode()
        start, line = self._append(body, "journal", durable=durable)
        self.replica.apply(done)
        self._applied(done.seq, done.entries, start, line[:PREFIX])

    @property
    def poisoned(self) -> bool:
        """Whether a sync failed: nothing in this file counts as durable until a new base."""
        return self._at is not None and self._at.poisoned

    def harden(self) -> bool:
        """Make durable what was read or written so far; False when it was. Needs no lock. Raises
        OSError, also when an earlier sync of the file failed: the kernel tells of an error once."""
        at = self._at
        if at is None or at.durable == at.offset:
            return False
        end = at.offset
        self._sync(at)
        at.durable = end
        return True

    def _sync(self, at: Position) -> None:
        if at.poisoned:
            raise OSError(errno.EIO, "an earlier sync of it failed")
        try:
            sync_data(at.handle, "journal")
        except OSError:
            at.poisoned = True
            raise

    def mark(self, marker: Marker) -> None:
        """Note which snapshot is about to be renamed into place."""
        body = json.dumps({"snap": marker.model_dump()}, separators=(",", ":")).encode()
        at = self._at
        assert at is not None
        owed = at.durable < at.offset
        self._append(body, "marker", durable=False)
        if not owed:  # a marker may be lost: then the file is judged by its content
            at.durable = at.offset
        self._take_marker(marker)

    def _append(self, body: bytes, name: str, *, durable: bool) -> tuple[int, bytes]:
        """Where the line begins, and the line."""
        at = self._at
        assert at is not None
        line, crc = framed(body, at.crc)
        try:
            self._may_write(at)
            write_at(at.handle, line, at.offset, name)
            self._reserve(at, at.offset + len(line))
            if durable:
                self._sync(at)
        except OSError as error:
            raise self._rolled_back(error) from error
        start, at.offset, at.crc = at.offset, at.offset + len(line), crc
        if durable:
            at.durable = at.offset
        return start, line

    def _reserve(self, at: Position, end: int) -> None:
        """Who writes much writes into space that the file has already: an fsync of a file that
        did not grow costs half as much."""
        if end <= at.size:
            return
        at.size = end
        self._growths += 1
        if self._growths > FEW:
            with contextlib.suppress(OSError):  # a full disk may still have room for the line
                write_at(at.handle, bytes(RESERVE), end, "reserve")
                at.size, self._reserved = end + RESERVE, True

    def trim(self) -> None:
        """Give back what this process reserved. Under the lock."""
        at = self._at
        if at is not None and self._reserved:
            os.ftruncate(at.handle, at.offset)
            at.size, self._reserved = at.offset, False

    def _may_write(self, at: Position) -> None:
        """The file may have been opened while its folder was read-only."""
        if not self._writable:
            handle = os.open(self.path, os.O_RDWR)  # under the lock: it is still the same file
            os.close(at.handle)
            at.handle, self._writable = handle, True

    def _rolled_back(self, error: OSError) -> StateError:
        """Cut off what may have been written of a line that did not become durable."""
        at = self._at
        assert at is not None
        note = "nothing was changed"
        try:
            os.ftruncate(at.handle, at.offset)
            at.size = at.offset
        except OSError as second:
            note = f"and its last line could not be cut off again: {second.strerror}"
        else:
            try:
                sync(at.handle, "journal")  # the disk may have the whole line already
            except OSError:
                at.poisoned = True
                note += ", but a power cut may bring the change back"
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
        begun = self.since if since is None else since
        body = b'{"board":' + newest.board.model_dump_json().encode() + b"}"
        head = Head(
            seq=newest.seq,
            revision=newest.revision,
            at=newest.at,
            since=begun,
            last_event=self.last_event,
            markers=self.markers,
            bytes=len(framed(body, 0)[0]),
        )
        data, crc = framed(head.model_dump_json(exclude={"crc"}).encode(), 0)
        line, crc = framed(body, crc)
        data += line
        end = len(data)
        if then is not None:
            line, crc = framed(then.model_dump_json(exclude_defaults=True).encode(), crc)
            data += line
        temp = self.path.with_name(f".{self.path.name}.tmp")
        write_temp(temp, data, "rebase")
        handle = os.open(temp, os.O_RDWR)

        def switch() -> None:
            """The name leads to the new file from now on: nothing may go to the old one."""
            self._close_handle()
            self._writable = True
            status = os.fstat(handle)
            identity, size = (status.st_dev, status.st_ino), len(data)
            self._at = Position(handle, size, crc, end, identity, size, size, clean=True)
            self._reserved = False
            self.replica, self.base_seq, self.since = newest, newest.seq, begun
            self._base_event, self._starts = self.last_event, []
            self.marker_is_last = bool(self.markers)
            if then is not None:
                self.replica.apply(then)
                self._applied(then.seq, then.entries, end, line[:PREFIX])

        try:
            replace(temp, self.path, "rebase", switch=switch)
        except OSError:
            if self._at is None or self._at.handle != handle:
                os.close(handle)
            else:
                self._at.poisoned = True  # the rename may be undone by a power cut
            raise
