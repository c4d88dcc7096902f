"""Checkpoint folders as every side and every backend sees them.

    checkpoints/0000010/   adapters.safetensors  adapter_config.json   mlx-lm's, or PEFT's
                           state.safetensors                           of the optimizer
                           metrics.jsonl                               every step until then
                           checkpoint.json                             CheckpointNote

A checkpoint is written under another name, fsynced and renamed, so it is whole or not there; its
checksums tell when a disk has changed it since. The data's order needs no file: it is a function
of seed and iteration.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from oodatcaa.domain.base import Record, Utc
from oodatcaa.domain.training import TrainSpec
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.files import stream_atomic, sync_folder, write_atomic
from oodatcaa.training.hashes import file_sha256
from oodatcaa.training.progress import DISK_FULL, DiskFullError
from oodatcaa.training.protocol import ADAPTER_CONFIG_FILE, METRICS_FILE

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

NOTE_FILE = "checkpoint.json"
STATE_FILE = "state.safetensors"
UNFINISHED = ".new-"


class RunIdentity(Record):
    """What must be the same for a resumed run to be the same run, each thing under its name."""

    facts: dict[str, str]

    def differences(self, now: Mapping[str, str]) -> tuple[str, ...]:
        """One line for each fact that is another one now; facts of only one side do not count."""
        return tuple(
            f"{name}: {_short(was)} then, {_short(now[name])} now"
            for name, was in sorted(self.facts.items())
            if name in now and now[name] != was
        )


class Selection(Record):
    """The best validation so far; `checkpoint` is the iteration whose folder holds its weights."""

    iteration: int | None = None
    checkpoint: int | None = None
    loss: float | None = None
    not_better: int = Field(default=0, ge=0, description="validations since the best one")

    def after(self, iteration: int, checkpoint: int, loss: float, min_delta: float) -> Selection:
        """Once the validation of `iteration` is known; better = lower by more than the delta."""
        if self.loss is None or loss < self.loss - min_delta:
            return Selection(iteration=iteration, checkpoint=checkpoint, loss=loss)
        return self.evolve(not_better=self.not_better + 1)


class CheckpointNote(Record):
    """checkpoint.json: everything that is not a tensor, and the checksums of what is beside it."""

    iteration: int = Field(ge=0)
    optimizer_step: int = Field(ge=0)
    random_key: int = Field(ge=0, description="of MLX: dropout goes on with it")
    identity: RunIdentity
    tokens: int = Field(ge=0, description="target tokens until then")
    seconds: float = Field(ge=0, description="of the micro-steps until then")
    pending: tuple[tuple[float, int, float], ...] = Field(
        default=(), description="loss, tokens, seconds of steps that wait for their metrics line"
    )
    selection: Selection = Selection()
    files: dict[str, str] = Field(default_factory=dict, description="name -> sha256")
    at: Utc
    seal: str = Field(default="", description="sha256 over all the other fields")

    def sealed(self) -> CheckpointNote:
        return self.evolve(seal=self._digest())

    @property
    def intact(self) -> bool:
        return self.seal == self._digest()

    def _digest(self) -> str:
        return hashlib.sha256(self.evolve(seal="").model_dump_json().encode()).hexdigest()


@dataclass(frozen=True)
class Resume:
    """A checkpoint to go on from. `skipped` has a word on each newer one that is not whole."""

    run_id: str
    folder: Path
    iteration: int
    skipped: tuple[str, ...] = ()

    def apply(self, spec: TrainSpec) -> TrainSpec:
        """The same training, going on from the checkpoint."""
        return spec.evolve(resume_from=str(self.folder), start_iteration=self.iteration)


CANNOT = "the checkpoint can not be continued"
"""So begins the failure of a run that was refused its checkpoint."""


def checkpoint_name(iteration: int) -> str:
    return f"{iteration:07d}"


def write_checkpoint(
    parent: Path, note: CheckpointNote, write: Callable[[Path], dict[str, str]]
) -> Path:
    """`write` fills a folder and returns name -> sha256; then it appears under its own name.

    Whatever `write` raises leaves the other checkpoints as they are, and nothing of this one.
    """
    parent.mkdir(parents=True, exist_ok=True)
    target = parent / checkpoint_name(note.iteration)
    temp = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=parent))
    try:
        temp.chmod(0o755)
        final = note.evolve(files=write(temp)).sealed()
        write_atomic(
            temp / NOTE_FILE, final.model_dump_json(indent=1) + "\n", name="checkpoint.note"
        )
        sync_folder(temp)
        _rename(temp, target)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise
    return target


class Hashed(io.RawIOBase):
    """A file that is written from its beginning to its end, and the sha256 of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.hash, self.size = file, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        self.hash.update(data)
        self.size += memoryview(data).nbytes
        return self._file.write(data)


def save_stream(path: Path, write: Callable[[Any], object]) -> str:
    """Write atomically what `write` puts into the file; the sha256. DiskFullError instead of a
    torn file."""
    files = []

    def hashed(file: IO[bytes]) -> None:
        files.append(Hashed(file))
        write(files[-1])

    try:
        stream_atomic(path, hashed, name=f"checkpoint.{path.name}")
    except OSError as error:
        if error.errno in DISK_FULL:
            size = files[-1].size if files else 0
            raise DiskFullError(f"{path.name}: {error.strerror} ({size} bytes)") from error
        raise
    return files[-1].hash.hexdigest()


def save_bytes(path: Path, data: bytes | memoryview) -> str:
    """`save_stream` of what is there already."""
    return save_stream(path, lambda file: file.write(data))


def save_checkpoint(
    parent: Path,
    note: CheckpointNote,
    tensors: Mapping[str, Callable[[Path], str]],
    config: Mapping[str, object],
    metrics: bytes,
) -> Path:
    """The checkpoint's folder; `tensors` write their files and return the sha256.

    DiskFullError leaves earlier checkpoints alone.
    """

    def write(folder: Path) -> dict[str, str]:
        described = json.dumps(config, indent=1) + "\n"
        return {
            **{name: save(folder / name) for name, save in tensors.items()},
            ADAPTER_CONFIG_FILE: save_bytes(folder / ADAPTER_CONFIG_FILE, described.encode()),
            METRICS_FILE: save_bytes(folder / METRICS_FILE, metrics),
        }

    try:
        return write_checkpoint(parent, note, write)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise DiskFullError(f"checkpoint {note.iteration}: {error.strerror}") from error
        raise


class Snapshot(ABC):
    """Everything that a checkpoint holds, taken at one moment: training.monitor.Boundary but for
    what a framework's tensors are asked. `metrics_bytes` is how much of metrics.jsonl was written
    by then."""

    def __init__(self, note: CheckpointNote, metrics_bytes: int) -> None:
        self.note, self.metrics_bytes = note, metrics_bytes

    @property
    def iteration(self) -> int:
        return self.note.iteration

    @abstractmethod
    def writers(self) -> Mapping[str, Callable[[Path], str]]:
        """Name of a file -> what writes its tensors and returns the sha256."""

    def save(self, parent: Path, metrics: Path, config: Mapping[str, object]) -> Path:
        """The checkpoint's folder. DiskFullError leaves earlier ones alone."""
        written = metrics.read_bytes()[: self.metrics_bytes] if metrics.exists() else b""
        return save_checkpoint(parent, self.note, self.writers(), config, written)


def refused(problems: Sequence[str]) -> OodatcaaError:
    """`train.resume`, with everything that does not match."""
    return OodatcaaError(
        "train.resume",
        f"the checkpoint can not be continued: {problems[0]}",
        hint="start over with `oodatcaa train`; the interrupted run stays as it is",
        details=problems,
    )


def adopt(source: Path, parent: Path) -> Path:
    """The same checkpoint in another run's folder: linked where the disk can, else copied."""
    target = parent / source.name
    if target.is_dir():
        return target
    parent.mkdir(parents=True, exist_ok=True)
    temp = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=parent))
    try:
        temp.chmod(0o755)
        for path in sorted(source.iterdir()):
            _link(path, temp / path.name)
        sync_folder(temp)
        _rename(temp, target)
    except BaseException:
        shutil.rmtree(temp, ignore_errors=True)
        raise
    return target


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        with source.open("rb") as kept:
            stream_atomic(target, lambda file: shutil.copyfileobj(kept, file), mode=0o444)


def _rename(temp: Path, target: Path) -> None:
    if target.is_dir():  # one that is torn: a whole one is never written again
        shutil.rmtree(target)
    temp.rename(target)
    sync_folder(target.parent)


def verify(folder: Path) -> CheckpointNote:
    """The note of a checkpoint that is whole. Raises OodatcaaError `train.checkpoint_torn`."""
    try:
        note = CheckpointNote.model_validate_json((folder / NOTE_FILE).read_bytes())
    except FileNotFoundError as error:
        raise _torn(folder, f"{NOTE_FILE} is missing") from error
    except (OSError, ValidationError) as error:
        raise _torn(folder, f"{NOTE_FILE} can not be read") from error
    if not note.intact or folder.name != checkpoint_name(note.iteration):
        raise _torn(folder, f"{NOTE_FILE} is not what was written")
    for name, digest in note.files.items():
        path = folder / name
        if not path.is_file():
            raise _torn(folder, f"{name} is missing")
        try:
            whole = file_sha256(path) == digest
        except OSError as error:  # a disk that is damaged, or whose files are someone else's
            raise _torn(folder, f"{name} can not be read ({error.strerror})") from error
        if not whole:
            raise _torn(folder, f"{name} is not what was written")
    return note


def _torn(folder: Path, reason: str) -> OodatcaaError:
    return OodatcaaError(
        "train.checkpoint_torn",
        f"checkpoint {folder} is not whole: {reason}",
        hint="oodatcaa resume takes the newest one that is",
    )


def newest_whole(parent: Path) -> tuple[CheckpointNote | None, tuple[str, ...]]:
    """The newest checkpoint that is whole, and a word on each newer one that is not."""
    skipped: list[str] = []
    for folder in sorted(_folders(parent), reverse=True):
        try:
            return verify(folder), tuple(skipped)
        except OodatcaaError as error:
            skipped.append(f"{error.message}; skipped")
    return None, tuple(skipped)


def _folders(parent: Path) -> Iterator[Path]:
    for path in parent.glob("[0-9]*"):
        if path.is_dir() and path.name.isdigit() and path.name == checkpoint_name(int(path.name)):
            yield path


def prune(parent: Path, keep: int, best: int | None) -> None:
    """Remove all but the newest `keep` and the one of iteration `best`."""
    for folder in sorted(_folders(parent))[:-keep]:
        if best is None or folder.name != checkpoint_name(best):
            # Away from its name first: half a removal must not look like a torn checkpoint.
            grave = folder.with_name(f"{UNFINISHED}{folder.name}-{os.getpid()}")
            folder.rename(grave)
            shutil.rmtree(grave)


def sweep(parent: Path) -> None:
    """Remove what a killed process had not finished writing. Only when nobody writes here."""
    for path in parent.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):
            shutil.rmtree(path)


def _short(value: str) -> str:
    return value[:12] if len(value) == 64 else value or "none"
