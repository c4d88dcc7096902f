"""The run store: one folder per training run, never overwritten, never written again once over.

    <root>/<backend>/<%Y-%m-%d_%H-%M-%S>[-n]/   run.json, spec.json, owner.json, train.log, …
    <root>/<backend>/latest                     symlink to the newest finished run

Times in names are UTC. A folder appears complete with its run.json or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from oodatcaa.domain.base import Record
from oodatcaa.domain.training import FailureKind, RunFailure, RunRecord, RunStatus, TrainSpec
from oodatcaa.errors import OodatcaaError, StateError
from oodatcaa.kit.files import sync_folder, write_atomic
from oodatcaa.kit.process import is_alive, process_identity
from oodatcaa.training.checkpoints import (
    CANNOT,
    Resume,
    checkpoint_name,
    newest_whole,
    sweep,
    verify,
)
from oodatcaa.training.identity import parameter_facts
from oodatcaa.training.metrics import merge_measured
from oodatcaa.training.protocol import CHECKPOINTS_DIR, SPEC_FILE
from oodatcaa.training.watching import draw

RUN_FILE = "run.json"
OWNER_FILE = "owner.json"
CHILD_FILE = "child.json"
LATEST = "latest"
RUN_NAME = re.compile(r"^(\d{4}-\d{2}-\d{2}_\d{2}-\d{2}-\d{2})(?:-(\d+))?$")
RESUMABLE = (
    FailureKind.CRASH,
    FailureKind.KILLED,
    FailureKind.DISK_FULL,
    FailureKind.INTERRUPTED,
)


class Owner(Record):
    """Which process may write to a run; `create_time` as in `kit.process.process_identity`."""

    host: str
    pid: int
    create_time: float

    @classmethod
    def of(cls, pid: int | None = None) -> Owner:
        number, start = process_identity(pid)
        return cls(host=socket.gethostname(), pid=number, create_time=start)

    @property
    def here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def alive(self) -> bool:
        """On this host: runs. About another host nothing is known, which counts as alive."""
        return not self.here or is_alive(self.pid, self.create_time)


@dataclass(frozen=True)
class Listing:
    """Every run, oldest first, and every folder that could not be read, with the reason."""

    runs: tuple[RunRecord, ...]
    problems: tuple[str, ...]


class RunStore:
    """Safe for any number of processes on one machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, run: RunRecord) -> Path:
        return self.root / run.backend / run.run_id

    def create(self, spec: TrainSpec, *, now: datetime | None = None) -> RunRecord:
        """A new run folder with spec.json and run.json (status running), owned by this process.

        Two runs in one second get different names. Raises OSError when the disk refuses.
        """
        moment = now or datetime.now(UTC)
        parent = self.root / spec.backend
        parent.mkdir(parents=True, exist_ok=True)
        temp = Path(tempfile.mkdtemp(prefix=".new-", dir=parent))
        try:
            temp.chmod(0o755)
            write_atomic(temp / SPEC_FILE, spec.model_dump_json(indent=2) + "\n")
            write_atomic(temp / OWNER_FILE, Owner.of().model_dump_json() + "\n")
            return self._name(temp, parent, spec, moment)
        except BaseException:
            shutil.rmtree(temp, ignore_errors=True)
            raise

    def _name(self, temp: Path, parent: Path, spec: TrainSpec, moment: datetime) -> RunRecord:
        """Move the folder to the first free name: rename(2) refuses one that holds files."""
        stamp = moment.astimezone(UTC).strftime("%Y-%m-%d_%H-%M-%S")
        count = 1
        while True:
            run_id = stamp if count == 1 else f"{stamp}-{count}"
            count += 1
            if os.path.lexists(parent / run_id):
                continue
            run = _first_record(spec, run_id, moment)
            write_atomic(temp / RUN_FILE, run.model_dump_json(indent=2) + "\n")
            try:
                temp.rename(parent / run_id)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    continue
                raise
            sync_folder(parent)
            return run

    def read(self, backend: str, run_id: str) -> RunRecord:
        """One run. `run_id` may be `latest`. Raises OodatcaaError (unknown) or StateError."""
        folder = self.root / backend / run_id
        if not folder.is_dir():
            known = [run.run_id for run in self.list(backend).runs]
            raise OodatcaaError(
                "run.unknown",
                f"there is no run {run_id!r} of backend {backend!r}",
                hint="oodatcaa runs" + (f" (newest: {known[-1]})" if known else ""),
            )
        return _read(folder)

    def find(self, run_id: str) -> RunRecord:
        """One run of whatever backend; the newest where several have that id.

        Raises OodatcaaError (unknown) or StateError.
        """
        folders = [path for path in self.root.glob(f"*/{run_id}") if path.is_dir()]
        if not folders:
            known = [run.run_id for run in self.list().runs]
            raise OodatcaaError(
                "run.unknown",
                f"there is no run {run_id!r}",
                hint="oodatcaa runs" + (f" (newest: {known[-1]})" if known else ""),
            )
        return max((_read(path) for path in folders), key=lambda run: run.started_at)

    def list(self, backend: str | None = None) -> Listing:
        """Every run of one or all backends. Unreadable folders are reported, never skipped."""
        runs: list[RunRecord] = []
        problems: list[str] = []
        for folder in self._folders(backend):
            try:
                runs.append(_read(folder))
            except StateError as error:
                problems.append(error.message)
        runs.sort(key=lambda run: _order(run.run_id))
        return Listing(tuple(runs), tuple(problems))

    def _folders(self, backend: str | None) -> Iterator[Path]:
        parents = [self.root / backend] if backend else sorted(self.root.glob("*"))
        for parent in parents:
            for folder in sorted(parent.glob("*")) if parent.is_dir() else ():
                if RUN_NAME.match(folder.name) and folder.is_dir():
                    yield folder

    def latest(self, backend: str) -> RunRecord | None:
        """The run that the `latest` link names; None before the first finished run."""
        link = self.root / backend / LATEST
        return _read(link) if link.is_dir() else None

    def update(self, run: RunRecord) -> None:
        """Replace run.json of a run that is still running. Raises StateError otherwise."""
        self._must_run(run)
        write_atomic(self.folder(run) / RUN_FILE, run.model_dump_json(indent=2) + "\n")

    def set_child(self, run: RunRecord, pid: int) -> None:
        """Remember the training child, so that recovery waits until it is gone too."""
        path = self.folder(run) / CHILD_FILE
        write_atomic(path, Owner.of(pid).model_dump_json() + "\n")

    def finish(self, run: RunRecord) -> None:
        """Draw the run, write the final record and seal the folder: its files become read-only.

        `latest` moves when the status is finished and no newer run finished before. Raises
        StateError when the run was over already.
        """
        if run.status is RunStatus.RUNNING or run.finished_at is None:
            raise ValueError("a finished run has a final status and finished_at")
        with self._lock(run.backend):
            self._must_run(run)
            folder = self.folder(run)
            sweep(folder / CHECKPOINTS_DIR)
            draw(run, folder)
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not path.is_symlink() and path.name != RUN_FILE:
                    path.chmod(0o444)
            # Last: until this is written the run counts as running and can be recovered.
            write_atomic(folder / RUN_FILE, run.model_dump_json(indent=2) + "\n", mode=0o444)
            if run.status is RunStatus.FINISHED:
                self._point_latest(run)

    def _must_run(self, run: RunRecord) -> None:
        stored = _read(self.folder(run))
        if stored.status is not RunStatus.RUNNING:
            raise StateError(
                "run.over",
                f"run {run.run_id} is {stored.status.value} and is never written again",
                hint="oodatcaa train starts a new run",
            )

    def _point_latest(self, run: RunRecord) -> None:
        parent = self.root / run.backend
        link = parent / LATEST
        if link.exists() and not link.is_symlink():
            raise StateError(
                "run.latest_not_a_link",
                f"{link} is not a symlink",
                hint=f"move it away, then: ln -s {run.run_id} {link}",
            )
        if link.is_dir():
            with contextlib.suppress(StateError):  # an unreadable target is replaced
                current = _read(link)
                if current.finished_at and run.finished_at:
                    newer = current.finished_at > run.finished_at
                    if newer and current.status is RunStatus.FINISHED:
                        return
        temp = parent / f".{LATEST}.{os.getpid()}"
        temp.unlink(missing_ok=True)
        temp.symlink_to(run.run_id, target_is_directory=True)
        temp.replace(link)
        sync_folder(parent)

    def find_resumable(
        self,
        spec: TrainSpec,
        facts: Mapping[str, str] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> Resume | None:
        """The furthest checkpoint of an interrupted run of this very training, if there is one.

        The same model, data and `facts`, and parameters that differ only where a resume allows it
        (see training.identity); a run that ended at the memory gate or with numbers that are not
        finite would only end there again and does not count. Nor does one that a resumed run was
        refused with. `say` gets a word on every checkpoint that is passed over.
        """
        best: Resume | None = None
        runs = self.list(spec.backend).runs
        refused = {
            run.resumed_from
            for run in runs
            if run.failure is not None and run.failure.message.startswith(CANNOT)
        }
        for run in runs:
            if run.status not in (RunStatus.FAILED, RunStatus.STOPPED):
                continue
            if run.failure is not None and run.failure.kind not in RESUMABLE:
                continue
            if not _same_training(run, spec):
                continue
            found = self.last_checkpoint(run)
            if found is None or (best is not None and found.iteration < best.iteration):
                continue
            passed = _differs(found, facts or {})
            if run.run_id in refused:
                passed = (f"the checkpoint of run {run.run_id} was refused before",)
            for word in (*found.skipped, *passed):
                say(word)
            best = best if passed else found
        return best

    def last_checkpoint(self, run: RunRecord) -> Resume | None:
        """The newest checkpoint of a run that is whole.

        A run that was itself resumed and died before it took over its checkpoint has that one.
        """
        folder = self.folder(run)
        note, skipped = newest_whole(folder / CHECKPOINTS_DIR)
        if note is not None:
            place = folder / CHECKPOINTS_DIR / checkpoint_name(note.iteration)
            return Resume(run.run_id, place, note.iteration, skipped)
        with contextlib.suppress(OSError, ValidationError, OodatcaaError):
            spec = TrainSpec.model_validate_json((folder / SPEC_FILE).read_bytes())
            if spec.resume_from is not None:
                place = Path(spec.resume_from)
                return Resume(run.run_id, place, verify(place).iteration, skipped)
        return None

    def recover(self, *, now: datetime | None = None) -> tuple[RunRecord, ...]:
        """Turn runs whose owner died on this machine into failed ones; those that changed.

        What was measured until then (losses, memory, iterations) is kept in record and plot.
        """
        recovered = []
        for run in self.abandoned():
            failed = self._killed(run, now or datetime.now(UTC))
            with contextlib.suppress(StateError):  # someone else recovered it first
                self.finish(failed)
                recovered.append(failed)
        return tuple(recovered)

    def abandoned(self) -> tuple[RunRecord, ...]:
        """Runs that say running, but whose owner died on this machine."""
        running = (run for run in self.list().runs if run.status is RunStatus.RUNNING)
        return tuple(run for run in running if not self._has_living_owner(run))

    def relink(self, backend: str) -> str | None:
        """Make `latest` name the newest finished run, or nothing when none finished."""
        with self._lock(backend):
            done = [r for r in self.list(backend).runs if r.status is RunStatus.FINISHED]
            newest = max(done, key=lambda run: (run.finished_at, run.run_id), default=None)
            link = self.root / backend / LATEST
            if link.is_symlink():
                link.unlink()
            if newest is None:
                return None
            self._point_latest(newest)
            return newest.run_id

    def _has_living_owner(self, run: RunRecord) -> bool:
        owners = (_owner(self.folder(run) / name) for name in (OWNER_FILE, CHILD_FILE))
        return any(owner.alive for owner in owners if owner is not None)

    def _killed(self, run: RunRecord, now: datetime) -> RunRecord:
        folder = self.folder(run)
        checkpoint = self.last_checkpoint(run)
        hint = f"oodatcaa resume {run.run_id}" if checkpoint else "oodatcaa train"
        at = f"; checkpoint at iteration {checkpoint.iteration}" if checkpoint else ""
        failure = RunFailure(
            kind=FailureKind.KILLED,
            message=f"the process that ran it died before it ended{at}",
            hint=hint,
        )
        measured = merge_measured(run, folder)
        return measured.evolve(status=RunStatus.FAILED, failure=failure, finished_at=now)

    @contextlib.contextmanager
    def _lock(self, backend: str) -> Iterator[None]:
        with (self.root / backend / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _order(run_id: str) -> tuple[str, int]:
    match = RUN_NAME.match(run_id)
    return (match[1], int(match[2] or 1)) if match else (run_id, 0)


def _owner(path: Path) -> Owner | None:
    try:
        return Owner.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _read(folder: Path) -> RunRecord:
    path = folder / RUN_FILE
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        reason = "is missing"
    except (OSError, ValidationError) as error:
        reason = f"can not be read: {_first_line(error)}"
    raise StateError(
        "run.unreadable",
        f"{path} {reason}",
        hint=f"restore the file or move the folder away: mv {folder} {folder}.unreadable",
    )


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return f"{place}: {first['msg']}" if place else str(first["msg"])
    return str(error)


def _differs(found: Resume, facts: Mapping[str, str]) -> tuple[str, ...]:
    was = verify(found.folder).identity.differences(facts)
    return tuple(f"the checkpoint of run {found.run_id} does not fit: {word}" for word in was)


def _same_training(run: RunRecord, spec: TrainSpec) -> bool:
    same_data = (
        run.data_sha256 == spec.data_sha256 if spec.data_sha256 else run.data_dir == spec.data_dir
    )
    if run.model != spec.model or not same_data:
        return False
    return parameter_facts(run.params) == parameter_facts(spec.params)


def _first_record(spec: TrainSpec, run_id: str, moment: datetime) -> RunRecord:
    params = spec.params
    return RunRecord(
        started_at=moment,
        git_sha=spec.git_sha,
        data_dir=spec.data_dir,
        model=spec.model,
        lora_rank=params.rank,
        lora_alpha=params.alpha,
        iters=params.iters,
        batch_size=params.batch_size,
        learning_rate=params.learning_rate,
        run_id=run_id,
        backend=spec.backend,
        status=RunStatus.RUNNING,
        git_dirty=spec.git_dirty,
        data_sha256=spec.data_sha256,
        params=params,
        memory_limit_bytes=spec.memory_limit_bytes,
        resumed_from=Path(spec.resume_from).parent.parent.name if spec.resume_from else None,
        start_iteration=spec.start_iteration,
        story=spec.story,
        task=spec.task,
        attempt=spec.attempt,
    )
