"""Training runs on one machine overlap only while their memory fits the limit together.

A ledger in the user's cache folder, shared by all projects, changed only under a file lock. An
entry dies with the process that made it (pid and start time), so a crash frees its memory. Who
waits is served in the order of asking: a large run is not starved by small ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import platformdirs
from pydantic import PositiveInt, ValidationError

from oodatcaa.domain.base import Record, Utc
from oodatcaa.errors import OodatcaaError, RefusedError, StateError
from oodatcaa.kit.files import write_atomic
from oodatcaa.kit.process import is_alive, process_identity

POLL_SECONDS = 0.25
LEDGER_FILE = "reservations.json"
R = TypeVar("R")


class Reservation(Record):
    """A claim on memory. Not `granted` means: still waiting for its turn."""

    id: str
    host: str
    pid: int
    create_time: float
    bytes: PositiveInt
    limit: PositiveInt
    label: str
    since: Utc
    granted: bool

    @property
    def alive(self) -> bool:
        return is_alive(self.pid, self.create_time)

    def describe(self) -> str:
        """For people: who holds how much since when."""
        return f"{self.label} (pid {self.pid}, {self.bytes / 1e9:.2f} GB since {self.since:%H:%M})"


class _Ledger(Record):
    schema_version: int = 1
    entries: tuple[Reservation, ...] = ()


class Reservations:
    """The ledger of one machine. `folder` is the user's cache folder unless told otherwise."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or platformdirs.user_cache_path("oodatcaa") / "reservations"

    def holders(self) -> tuple[Reservation, ...]:
        """Who holds or waits for memory right now, in order."""
        with self._locked():
            return self._live()

    def allowance(self, mine: Reservation) -> int:
        """What this holder may use now: what it reserved, and an equal share of what is left.

        Over all holders that adds up to the smallest limit of those involved, so runs that share a
        machine stay under it together even when each of them outgrows its reservation.
        """
        with self._locked():
            held = [e for e in self._live() if e.granted and e.host == mine.host]
        if not held:
            return mine.limit
        free = min(entry.limit for entry in held) - sum(entry.bytes for entry in held)
        return mine.bytes + max(0, free) // len(held)

    @contextlib.contextmanager
    def reserve(
        self,
        size: int,
        limit: int,
        *,
        label: str = "training",
        wait: bool = True,
        should_stop: Callable[[], bool] | None = None,
        on_wait: Callable[[tuple[Reservation, ...]], None] | None = None,
    ) -> Iterator[Reservation]:
        """Hold `size` bytes for as long as the block runs.

        Waits until everything that is granted fits under the smallest limit of those involved;
        `on_wait` hears about the holders whenever they change. Raises RefusedError
        `reservation.too_large` (it alone exceeds the limit), `reservation.taken` (wait=False; the
        message names the holders) and OodatcaaError `reservation.stopped`.
        """
        if size > limit:
            raise RefusedError(
                "reservation.too_large",
                f"{size / 1e9:.2f} GB can never fit into a limit of {limit / 1e9:.2f} GB",
                hint="oodatcaa estimate shows what needs so much",
            )
        mine = self._ask(size, limit, label)
        try:
            yield self._wait(mine, wait, should_stop, on_wait)
        finally:
            self._drop(mine)

    def within(
        self,
        size: int,
        limit: int,
        work: Callable[[Callable[[], int]], R],
        *,
        label: str,
        should_stop: Callable[[], bool] | None = None,
        on_wait: Callable[[tuple[Reservation, ...]], None] | None = None,
    ) -> R:
        """What `work` returns, done while `size` bytes are held; it is given its `allowance`.

        Work that raises RefusedError `reservation.outgrown` is done once more with twice of what it
        was allowed held, and so on up to the limit, as soon as others leave so much. Raises like
        `reserve`, and what `work` raises.
        """
        while True:
            allowed = size
            with self.reserve(
                size, limit, label=label, should_stop=should_stop, on_wait=on_wait
            ) as mine:

                def allowance(mine: Reservation = mine) -> int:
                    nonlocal allowed
                    found = self.allowance(mine)
                    allowed = max(allowed, found)
                    return found

                try:
                    return work(allowance)
                except RefusedError as error:
                    if error.code != "reservation.outgrown" or size == limit:
                        raise
            size = min(limit, 2 * allowed)

    def _ask(self, size: int, limit: int, label: str) -> Reservation:
        pid, start = process_identity()
        mine = Reservation(
            id=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=pid,
            create_time=start,
            bytes=size,
            limit=limit,
            label=label,
            since=datetime.now(UTC),
            granted=False,
        )
        with self._locked():
            self._write((*self._live(), mine))
        return mine

    def _wait(
        self,
        mine: Reservation,
        wait: bool,
        should_stop: Callable[[], bool] | None,
        on_wait: Callable[[tuple[Reservation, ...]], None] | None,
    ) -> Reservation:
        told: tuple[str, ...] | None = None
        while True:
            granted, others = self._try(mine)
            if granted is not None:
                return granted
            if not wait:
                raise RefusedError(
                    "reservation.taken",
                    f"{mine.bytes / 1e9:.2f} GB do not fit beside "
                    + ", ".join(other.describe() for other in others),
                    hint="wait until they end, or lower what this run needs: oodatcaa estimate",
                )
            if should_stop is not None and should_stop():
                raise OodatcaaError("reservation.stopped", "stopped while waiting for memory")
            ids = tuple(other.id for other in others)
            if on_wait is not None and ids != told:
                told = ids
                on_wait(others)
            time.sleep(POLL_SECONDS)

    def _try(self, mine: Reservation) -> tuple[Reservation | None, tuple[Reservation, ...]]:
        """Grant `mine` if it is its turn and it fits; else those who are in the way."""
        with self._locked():
            entries = self._live()
            ahead = _before(entries, mine)
            held = [entry for entry in entries if entry.granted and entry.host == mine.host]
            used = sum(entry.bytes for entry in held)
            allowed = min([mine.limit, *(entry.limit for entry in held)])
            if ahead or used + mine.bytes > allowed:
                return None, (*held, *ahead)
            granted = mine.evolve(granted=True, since=datetime.now(UTC))
            self._write(tuple(granted if e.id == mine.id else e for e in entries))
            return granted, ()

    def _drop(self, mine: Reservation) -> None:
        with self._locked():
            self._write(tuple(entry for entry in self._live() if entry.id != mine.id))

    def _live(self) -> tuple[Reservation, ...]:
        here = socket.gethostname()  # a home folder may be shared between machines
        return tuple(e for e in self._read().entries if e.host != here or e.alive)

    def _read(self) -> _Ledger:
        path = self.folder / LEDGER_FILE
        try:
            return _Ledger.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return _Ledger()
        except ValidationError as error:
            raise StateError(
                "reservation.unreadable",
                f"{path} can not be read: {error.errors()[0]['msg']}",
                hint=f"when no training runs on this machine: rm {path}",
            ) from error

    def _write(self, entries: tuple[Reservation, ...]) -> None:
        if entries != self._read().entries:
            path = self.folder / LEDGER_FILE
            write_atomic(path, _Ledger(entries=entries).model_dump_json(indent=2) + "\n")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        # Never unlinked: two processes must not lock two different files of one name.
        with (self.folder / f"{LEDGER_FILE}.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _before(entries: tuple[Reservation, ...], mine: Reservation) -> tuple[Reservation, ...]:
    """Those on this machine that asked earlier and still wait."""
    found = []
    for entry in entries:
        if entry.id == mine.id:
            break
        if not entry.granted and entry.host == mine.host:
            found.append(entry)
    return tuple(found)


def default_reservations() -> Reservations:
    """The machine-wide ledger; OODATCAA_RESERVATIONS names another folder (used by tests)."""
    folder = os.environ.get("OODATCAA_RESERVATIONS")
    return Reservations(Path(folder) if folder else None)
