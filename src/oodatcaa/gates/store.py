"""Evidence on disk: one JSON file a gate, beside the full output of its command."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from pydantic import ValidationError

from oodatcaa.domain.evidence import Evidence
from oodatcaa.errors import OodatcaaError, StateError
from oodatcaa.kit.files import write_atomic
from oodatcaa.kit.locks import FileLock

LOCK_PATIENCE_S = 30.0
_ID = re.compile(
    r"E-(?P<task>(?P<story>[A-Za-z0-9]+)(-[A-Za-z0-9]+)?)-a(?P<attempt>\d+)-(?P<number>\d{3,})-.+"
)


class EvidenceStore:
    """`work_dir`/evidence/<story>/: written once, never changed, safe for many processes.

    Ids are unique and sort in the order of the runs: E-T001-B01-a1-003-AC1.
    """

    def __init__(self, work_dir: Path) -> None:
        self._work = work_dir
        self._root = work_dir / "evidence"

    @property
    def work_dir(self) -> Path:
        return self._work

    def folder(self, name: str) -> Path:
        """A folder beside the evidence for what is derived from it; made when missing."""
        path = self._work / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def reserve(self, story: str, task: str, attempt: int, gate_id: str) -> str:
        """A new id nobody else gets; its (still empty) output file exists from now on."""
        folder = self._root / story
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"E-{task}-a{attempt}-"
        gate = re.sub(r"[^A-Za-z0-9._-]+", "-", gate_id).strip("-.")[:60] or "gate"
        lock = FileLock(folder / ".lock", code="evidence.busy", what=f"the evidence of {story}")
        try:
            with lock.held(LOCK_PATIENCE_S):
                taken = [
                    int(match["number"])
                    for path in folder.glob(f"{stem}*")
                    if (match := _ID.match(path.stem)) and path.name.startswith(stem)
                ]
                name = f"{stem}{max(taken, default=0) + 1:03}-{gate}"
                os.close(os.open(folder / f"{name}.txt", os.O_CREAT | os.O_EXCL, 0o644))
        finally:
            lock.close()
        return name

    def output_file(self, evidence_id: str) -> Path:
        """Where the full output of this evidence's command is kept."""
        return self._folder_of(evidence_id) / f"{evidence_id}.txt"

    def relative(self, path: Path) -> str:
        """As stored in `Evidence.output_path`: relative to the work folder."""
        return str(path.relative_to(self._work))

    def save(self, evidence: Evidence) -> None:
        """Durable when this returns. Raises StateError evidence.exists: evidence never changes."""
        path = self._path(evidence.id)
        text = evidence.model_dump_json(indent=2) + "\n"
        if path.exists():
            if path.read_text(encoding="utf-8") == text:
                return
            raise StateError(
                "evidence.exists",
                f"{evidence.id} is already stored and differs; evidence is never rewritten",
                hint=f"look at it: {path}",
            )
        write_atomic(path, text)

    def load(self, evidence_id: str) -> Evidence:
        """Raises OodatcaaError evidence.unknown, StateError evidence.unreadable."""
        return self._read(self._path(evidence_id))

    def of_story(
        self, story: str, *, task: str | None = None, attempt: int | None = None
    ) -> tuple[Evidence, ...]:
        """Everything about a story (or one task, one attempt), in the order it was gathered."""
        found = [self._read(path) for path in (self._root / story).glob("E-*.json")]
        chosen = [
            item
            for item in found
            if (task is None or item.task == task) and (attempt is None or item.attempt == attempt)
        ]
        return tuple(sorted(chosen, key=lambda item: (item.started_at, item.id)))

    def newest(
        self, story: str, *, task: str | None = None, attempt: int | None = None
    ) -> dict[str, Evidence]:
        """The last evidence of each gate, by gate id."""
        return {item.gate.id: item for item in self.of_story(story, task=task, attempt=attempt)}

    def is_intact(self, evidence: Evidence) -> bool:
        """Whether the stored output still is what was seen (True when there was none)."""
        if evidence.output_sha256 is None or evidence.output_path is None:
            return True
        try:
            data = (self._work / evidence.output_path).read_bytes()
        except FileNotFoundError:
            return False
        return hashlib.sha256(data).hexdigest() == evidence.output_sha256

    def _folder_of(self, evidence_id: str) -> Path:
        match = _ID.fullmatch(evidence_id)
        if match is None or "/" in evidence_id:
            raise OodatcaaError(
                "evidence.unknown",
                f"{evidence_id!r} is not an evidence id",
                hint="ids look like E-T001-B01-a1-003-AC1; see: oodatcaa show T001",
            )
        return self._root / match["story"]

    def _path(self, evidence_id: str) -> Path:
        return self._folder_of(evidence_id) / f"{evidence_id}.json"

    def _read(self, path: Path) -> Evidence:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise OodatcaaError(
                "evidence.unknown", f"there is no evidence {path.stem}", hint="oodatcaa show T001"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable(path, str(error)) from error
        try:
            return Evidence.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise _unreadable(path, f"{place} {first['msg']}".strip()) from error


def _unreadable(path: Path, reason: str) -> StateError:
    return StateError(
        "evidence.unreadable",
        f"{path} can not be read as evidence: {reason}",
        hint=f"move it away (mv '{path}' /tmp) and let the gates run again",
    )
