"""Closing a sprint: its queue, log and events move into archive/sprint-<n>/, all or nothing.

A sealed copy is built beside the target first. The journal's new base, which no longer holds the
sprint, is the commit point. Then the old files go and the copy gets its name; whoever finds a
sealed copy that the journal has moved past finishes this.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from oodatcaa.errors import StateError
from oodatcaa.kit.faults import reach
from oodatcaa.kit.files import sync_folder, write_atomic
from oodatcaa.state.disk import replace, write_temp
from oodatcaa.state.log import ARCHIVE, INDEX_FILE, LOG_FILE, AgentLog, last_place_of, rotations
from oodatcaa.state.snapshot import QUEUE_FILE, SCHEMA_FILE

_SEAL = "sealed.json"
EVENTS_FILE = "events.jsonl"


@dataclass(frozen=True)
class Sealed:
    """A closed sprint: its folder, and the last transaction that belongs to it."""

    folder: Path
    number: int
    seq: int


def newest_closed(work_dir: Path) -> Sealed | None:
    """The archived sprint that was closed last. The journal has moved past its `seq`: no folder
    gets its name before that is durable."""
    found = []
    for folder in (work_dir / ARCHIVE).glob("sprint-*"):
        try:
            seal = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
            found.append(Sealed(folder, seal["number"], seal["seq"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged by somebody: it proves nothing
    return max(found, key=lambda one: one.seq, default=None)


class SprintArchive:
    """All methods are called under the queue's lock."""

    def __init__(self, work_dir: Path, log: AgentLog) -> None:
        self._work_dir = work_dir
        self._folder = work_dir / ARCHIVE
        self._log = log

    def target(self, number: int) -> Path:
        return self._folder / f"sprint-{number}"

    def refuse_existing(self, number: int) -> None:
        if self.target(number).exists():
            raise StateError(
                "sprint.archived_already",
                f"{self.target(number)} exists: sprint {number} was archived before",
                hint="give the new sprint another number, or move that folder away",
            )

    def build(self, number: int, seq: int) -> None:
        """A durable copy of what belongs to the sprint, sealed with its last transaction."""
        partial = self._partial(number)
        if partial.exists():
            shutil.rmtree(partial)  # of an attempt that died before it was committed
        (partial / ARCHIVE).mkdir(parents=True)
        for name in (QUEUE_FILE, SCHEMA_FILE, LOG_FILE, EVENTS_FILE):
            _copy(self._work_dir / name, partial / name)
        for path in (*rotations(self._folder), self._folder / INDEX_FILE):
            _copy(path, partial / ARCHIVE / path.name)
        reach("archive.copied")
        seal = json.dumps({"number": number, "seq": seq}) + "\n"
        write_atomic(partial / _SEAL, seal, name="seal")
        sync_folder(partial / ARCHIVE)
        sync_folder(partial)
        reach("archive.sealed")

    def finish(self, since: int) -> None:
        """Complete every archive whose sprint the journal has left behind."""
        for partial in self._folder.glob(".sprint-*.partial"):
            try:
                seal = json.loads((partial / _SEAL).read_text(encoding="utf-8"))
            except (FileNotFoundError, ValueError):
                continue  # not sealed: the sprint is still open, closing it again replaces this
            if seal["seq"] <= since:
                self._drop_old_files(since)
                replace(partial, self.target(seal["number"]), "archive")

    def _drop_old_files(self, since: int) -> None:
        for path in rotations(self._folder):
            if (place := last_place_of(path)) is not None and place[0] <= since:
                path.unlink()
        (self._folder / INDEX_FILE).unlink(missing_ok=True)
        reach("archive.dropped_rotations")
        place = last_place_of(self._work_dir / LOG_FILE)
        if place is None or place[0] <= since:
            self._log.restart((since, place[1] if place and place[0] == since else 0))
        reach("archive.restarted_log")
        (self._work_dir / EVENTS_FILE).unlink(missing_ok=True)
        reach("archive.dropped_events")

    def _partial(self, number: int) -> Path:
        return self._folder / f".sprint-{number}.partial"


def _copy(source: Path, target: Path) -> None:
    try:
        data = source.read_bytes()
    except FileNotFoundError:
        return  # no rotation yet, or no events before the first base
    write_temp(target, data, "copy")
