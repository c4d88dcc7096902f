"""AGENT_LOG.md: the history for people, written from the journal, exactly once.

Every entry ends with a comment that names its transaction. After a crash the next writer looks for
the last one, cuts a torn entry off and writes what is missing; notes that people added stay.
A file over the limit is renamed into `archive/` as a whole, so the oldest entries go first.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from oodatcaa.domain.ports import Logged
from oodatcaa.domain.task import story_of
from oodatcaa.kit.files import write_atomic
from oodatcaa.state import dialect
from oodatcaa.state.disk import replace, sync, write_at, write_temp

LOG_FILE = "AGENT_LOG.md"
ARCHIVE = "archive"
INDEX_FILE = "INDEX.md"
_HEAD = (
    "# Agent log\n\n"
    "Every transition of the sprint, oldest first, written by the framework from its journal.\n"
    "Older entries: archive/INDEX.md\n\n"
)
_INDEX_HEAD = (
    "# Archived agent logs, oldest first\n\n"
    "| file | from | to | entries |\n| --- | --- | --- | --- |\n"
)
Place = tuple[int, int]


class AgentLog:
    """The writer; all its methods are called under the queue's lock."""

    def __init__(self, work_dir: Path, *, limit: int) -> None:
        self.path = work_dir / LOG_FILE
        self.archive = work_dir / ARCHIVE
        self._limit = limit
        self._handle = -1
        self._identity = (0, 0)
        self._size = 0
        self._last: Place | None = None
        self._clean = False

    def incomplete(self, expected: Place | None) -> bool:
        """Whether the entry `expected` (the journal's last event) is not the log's last."""
        if expected is None:
            return False
        if not self._open():
            return True
        if self._last is None:
            tail = os.pread(self._handle, 400, max(0, self._size - 400)).decode(errors="replace")
            found = dialect.last_place(tail)
            self._last = found[0] if found else None
            self._clean = found is not None and tail[found[1] :] == "\n\n"
        return self._last != expected

    @property
    def end(self) -> Place | None:
        """The last entry, if nothing but it and the head ends the file: `append` may go on there.

        None for a torn entry or a person's note after it, and where there is no file.
        """
        return self._last if self._handle >= 0 and self._clean else None

    def append(self, entries: Sequence[Logged]) -> None:
        """Write the entries that follow `end`, of transactions that are durable in the journal."""
        text = "".join(dialect.render(entry) for entry in entries)
        self._write(text.encode("utf-8", "surrogatepass"))
        self._last = (entries[-1].seq, entries[-1].index)
        if self._size > self._limit:
            self._rotate()

    def complete(self, history: Iterable[Logged], *, since: int) -> None:
        """Append what the log lacks of `history` (all events later than `since`)."""
        if not self._open():
            self._fresh(self._last_archived() or (since, 0))
        text = os.pread(self._handle, self._size, 0).decode("utf-8", "replace")
        found = dialect.last_place(text)
        place, end = found or ((since, 1 << 30), len(text))
        missing = [one for one in history if (one.seq, one.index) > place]
        lacking = "".join(dialect.render(one) for one in missing)
        tail = text[end:]
        whole = "\n\n" if found else ""
        if not tail.strip("\0\n") or (whole + lacking).startswith(tail.rstrip("\0\ufffd")):
            os.ftruncate(self._handle, len(text[:end].encode()))
            self._size = os.fstat(self._handle).st_size
            lacking = whole + lacking
        elif not text.endswith("\n\n"):
            lacking = "\n\n" + lacking  # after a person's note
        self._write(lacking.encode("utf-8", "surrogatepass"))
        self._clean = True
        self._last = (missing[-1].seq, missing[-1].index) if missing else place

    def sync(self) -> None:
        if self._handle >= 0:
            sync(self._handle, "log")

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def restart(self, place: Place) -> None:
        """Begin a new file whose entries come after `place`; the old one has been copied away."""
        self.close()
        self._fresh(place)

    def _open(self) -> bool:
        try:
            named = self.path.stat()
        except FileNotFoundError:
            self.close()
            return False
        identity = (named.st_dev, named.st_ino)
        if self._handle < 0 or identity != self._identity:
            self.close()
            self._handle = os.open(self.path, os.O_RDWR)
            self._identity, self._last = identity, None
            self._size = named.st_size
        elif named.st_size != self._size:
            self._size, self._last = named.st_size, None
        return True

    def _write(self, data: bytes) -> None:
        write_at(self._handle, data, self._size, "log")
        self._size += len(data)

    def _fresh(self, place: Place) -> None:
        """A file without entries that says which one came before, so that a torn one shows."""
        temp = self.path.with_name(f".{LOG_FILE}.tmp")
        write_temp(temp, f"{_HEAD}{dialect.after(place)}\n\n".encode(), "log_head")
        replace(temp, self.path, "log_head")
        self._open()

    def _rotate(self) -> None:
        """Rename the whole file away: all that it holds is older than what will be written."""
        assert self._last is not None
        self.sync()
        self.archive.mkdir(exist_ok=True)
        number = 1 + max((_number(path) for path in rotations(self.archive)), default=0)
        replace(self.path, self.archive / f"AGENT_LOG-{number:04d}.md", "rotate")
        self.close()
        self._fresh(self._last)
        write_index(self.archive)

    def _last_archived(self) -> Place | None:
        places = (last_place_of(path) for path in reversed(rotations(self.archive)))
        return next((place for place in places if place is not None), None)


def rotations(archive: Path) -> list[Path]:
    """The archived logs, oldest first."""
    return sorted(archive.glob("AGENT_LOG-*.md"), key=_number)


def _number(path: Path) -> int:
    digits = path.stem.rpartition("-")[2]
    return int(digits) if digits.isdigit() else 0


def last_place_of(path: Path) -> Place | None:
    """Seq and index of the last entry of a log file; None without one."""
    found = dialect.last_place(_text(path)) if path.exists() else None
    return found[0] if found else None


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "replace")


def write_index(archive: Path) -> None:
    """archive/INDEX.md: one row for each archived log; rows that are there are kept."""
    index = archive / INDEX_FILE
    old = index.read_text(encoding="utf-8").splitlines() if index.exists() else []
    rows = {line.split("|")[1].strip(): line for line in old if line.startswith("| AGENT_LOG")}
    for path in rotations(archive):
        if path.name not in rows:
            first, last, entries = dialect.extent(_text(path))
            rows[path.name] = f"| {path.name} | {first} | {last} | {entries} |"
    text = _INDEX_HEAD + "".join(f"{rows[key]}\n" for key in sorted(rows))
    write_atomic(index, text, name="index")


def read_log(
    work_dir: Path,
    *,
    task: str | None = None,
    agent: str | None = None,
    since: datetime | None = None,
) -> Iterator[Logged]:
    """Entries of the archived logs and the current one, oldest first, each once.

    `task` also takes a story and then means its subtasks too; `agent` is the actor's name.
    Works without the journal, so also on an archived sprint's folder.
    """
    paths = [*rotations(work_dir / ARCHIVE), work_dir / LOG_FILE]
    place: Place = (0, -1)
    for path in paths:
        if not path.exists():
            continue
        for logged in dialect.parse(_text(path)):
            if (logged.seq, logged.index) <= place:
                continue
            place = (logged.seq, logged.index)
            if wanted(logged, task, agent, since):
                yield logged


def every_entry(work_dir: Path) -> list[Logged]:
    """What the log's files hold, in their order, with whatever is doubled or out of place."""
    paths = [*rotations(work_dir / ARCHIVE), work_dir / LOG_FILE]
    return [one for path in paths if path.exists() for one in dialect.parse(_text(path))]


def wanted(logged: Logged, task: str | None, agent: str | None, since: datetime | None) -> bool:
    event = logged.event
    if task is not None and task not in (event.subject, story_of(event.subject)):
        return False
    if agent is not None and event.actor != agent:
        return False
    return since is None or event.at >= since
