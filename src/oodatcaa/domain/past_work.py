"""Work that only an imported file knows."""

from __future__ import annotations

from oodatcaa.domain.base import Record
from oodatcaa.domain.board import Event
from oodatcaa.domain.formats import ImportKind
from oodatcaa.domain.task import Story, Subtask


class PastWork(Record):
    """One task as one imported file tells it. No evidence of this project stands behind it."""

    id: str
    format: ImportKind
    file: str
    file_sha256: str
    called: str
    """Its id in that file."""
    here: str
    """The story of the sprint, or of the next one, that was made of it; or ""."""
    told: str
    """One line, as far as the file says; "" for work that was open there."""
    story: Story | None = None
    subtasks: tuple[Subtask, ...] = ()
    """Its parts; of a subtask, itself."""
    notes: tuple[Event, ...] = ()
    """Its old history, oldest first."""
    findings: tuple[str, ...] = ()
    """What the import had to say about it."""
