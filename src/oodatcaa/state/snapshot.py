"""SPRINT_QUEUE.json: what people and other programs read; a view of the journal.

It is written whole, to a temp file that is renamed into place. Rendering keeps the text of every
record that did not change, so a large queue costs little more than writing its bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from oodatcaa.domain.base import NonEmpty, Record, Sha256
from oodatcaa.domain.board import SCHEMA_VERSION, Board, Offer, Sprint
from oodatcaa.domain.task import Story, Subtask

QUEUE_FILE = "SPRINT_QUEUE.json"
SCHEMA_FILE = "SPRINT_QUEUE.schema.json"
MADE_BY = "generated from the records of oodatcaa"
"""The schema's comment begins so; the version follows."""
EXACT_NOTE = (
    "this file is the newest state; hold SPRINT_QUEUE.json.lock (filelock) to change it, "
    "or edit it: a legal change is taken over and logged, any other is set aside"
)
BEHIND_NOTE = (
    "while the crew runs this file may be a second behind queue.journal; "
    "it is exact again when the command ends"
)


class QueueFile(Record):
    """The file's layout; its JSON Schema is published beside it."""

    schema_: NonEmpty = Field(default=f"./{SCHEMA_FILE}", alias="$schema")
    schema_version: int = Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)
    revision: int = Field(ge=0)
    seq: int = Field(ge=0, description="the transaction this was written after; do not change it")
    sha256: Sha256 = Field(description="of the records below as they were written")
    exact: bool = Field(description="false: the journal may be up to a second ahead")
    note: str = ""
    sprint: Sprint | None
    stories: tuple[Story, ...]
    subtasks: tuple[Subtask, ...]
    offers: tuple[Offer, ...] = ()

    def board(self) -> Board:
        return Board(
            revision=self.revision,
            sprint=self.sprint,
            stories=self.stories,
            subtasks=self.subtasks,
            offers=self.offers,
        )


@dataclass(frozen=True)
class Rendered:
    data: bytes
    sha256: str
    """Of the whole file."""


class Renderer:
    """Board -> bytes. Remembers the text of records by identity between calls."""

    def __init__(self) -> None:
        self._texts: dict[str, tuple[Record, str]] = {}

    def render(self, board: Board, *, seq: int, exact: bool) -> Rendered:
        sprint = "null" if board.sprint is None else _indented(board.sprint, "  ")
        records = (
            f'  "sprint": {sprint},\n'
            f'  "stories": {self._array(board.stories)},\n'
            f'  "subtasks": {self._array(board.subtasks)},\n'
            f'  "offers": {_joined(_indented(offer, "    ") for offer in board.offers)}\n'
        )
        head = {
            "$schema": f"./{SCHEMA_FILE}",
            "schema_version": board.schema_version,
            "revision": board.revision,
            "seq": seq,
            "sha256": hashlib.sha256(records.encode()).hexdigest(),
            "exact": exact,
            "note": EXACT_NOTE if exact else BEHIND_NOTE,
        }
        lines = "".join(f"  {json.dumps(key)}: {json.dumps(v)},\n" for key, v in head.items())
        data = f"{{\n{lines}{records}}}\n".encode()
        if len(self._texts) > 2 * (len(board.stories) + len(board.subtasks)) + 100:
            self._texts.clear()
        return Rendered(data, hashlib.sha256(data).hexdigest())

    def _array(self, tasks: Iterable[Story | Subtask]) -> str:
        return _joined(self._text(task) for task in tasks)

    def _text(self, task: Story | Subtask) -> str:
        known = self._texts.get(task.id)
        if known is not None and known[0] is task:
            return known[1]
        text = _indented(task, "    ")
        self._texts[task.id] = (task, text)
        return text


def _joined(items: Iterable[str]) -> str:
    body = ",\n    ".join(items)
    return f"[\n    {body}\n  ]" if body else "[]"


def _indented(record: Record, by: str) -> str:
    return record.model_dump_json(indent=2).replace("\n", "\n" + by)


def intact(data: bytes) -> bool:
    """Whether the bytes are a snapshot as this program wrote it: the records fit their hash."""
    start = data.find(b'  "sprint": ')
    found = data.find(b'"sha256": "')
    if start < 0 or not 0 <= found < start or not data.endswith(b"}\n"):
        return False
    stated = data[found + 11 : found + 75]
    return hashlib.sha256(data[start:-2]).hexdigest().encode() == stated


def temp_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")
