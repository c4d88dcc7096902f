"""Imported drafts on disk: `.oodatcaa/work/imports/`, each under the hash of its content."""

from __future__ import annotations

from pathlib import Path

from oodatcaa.app.plans import read_record
from oodatcaa.domain.draft import DraftStory
from oodatcaa.domain.source import Source
from oodatcaa.errors import StateError
from oodatcaa.kit.files import write_atomic


class DraftFiles:
    """A draft is never changed: another content is another file."""

    def __init__(self, work: Path) -> None:
        self._folder = work / "imports"

    def put(self, draft: DraftStory) -> None:
        path = self._folder / f"{draft.fingerprint}.json"
        if not path.exists():
            write_atomic(path, draft.model_dump_json(indent=2) + "\n")

    def put_import(self, file_sha256: str, text: str) -> None:
        """Everything that one file gave, with every finding, for whoever asks later."""
        path = self._folder / f"file-{file_sha256}.json"
        if not path.exists():
            write_atomic(path, text + "\n")

    def get(self, source: Source) -> DraftStory:
        """The draft that was imported and approved.

        Raises StateError when it is missing, or not what its name says: then its commands are
        not the approved ones.
        """
        path = self._folder / f"{source.draft_sha256}.json"
        draft = read_record(path, DraftStory)
        if draft.fingerprint != source.draft_sha256:
            raise StateError(
                "import.draft_changed",
                f"{path.name} was changed after the import: nothing in it is run",
                hint=f"oodatcaa import {source.file} once more, and read its commands again",
            )
        return draft
