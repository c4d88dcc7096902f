"""What imported files say of work that is not on the board: mostly what was over there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from oodatcaa.app.plans import read_record
from oodatcaa.app.project import Project
from oodatcaa.app.sprints import carried_stories
from oodatcaa.domain.past_work import PastWork
from oodatcaa.domain.task import Story, Subtask
from oodatcaa.importers import Imported


def past_work(project: Project, task: str) -> tuple[PastWork, ...]:
    """What each imported file knows of `task`, by its id there or the one it got; newest import
    first, one version a file. Raises StateError for a record that can not be read."""
    stories = project.board().stories or carried_stories(project)
    found: dict[str, PastWork] = {}
    for path in _imports(project.work):
        imported = read_record(path, Imported)
        if imported.source not in found:
            one = _find(imported, task, stories)
            if one is not None:
                found[imported.source] = one
    return tuple(found.values())


def _imports(work: Path) -> list[Path]:
    paths = (work / "imports").glob("file-*.json")
    return sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def _find(imported: Imported, task: str, stories: Sequence[Story]) -> PastWork | None:
    new = imported.renamed.get(task, task)
    there = imported.board.find(new)
    if there is None and task not in imported.done:
        return None
    called = next((old for old, one in imported.renamed.items() if one == new), task)
    names = {task, new, called}
    story = there if isinstance(there, Story) else None
    parts = imported.board.subtasks_of(new) if story else ()
    family = {new, *(part.id for part in parts)}
    lines = dict(zip(imported.done, imported.told, strict=False))
    return PastWork(
        id=new,
        format=imported.kind,
        file=imported.source,
        file_sha256=imported.file_sha256,
        called=called,
        here=_here(imported, new, stories),
        told=lines.get(task, lines.get(new, "")),
        story=story,
        subtasks=(there,) if isinstance(there, Subtask) else parts,
        notes=tuple(note for note in imported.notes if note.subject in family),
        findings=tuple(str(one) for one in imported.findings if names & _words(one.message)),
    )


def _words(text: str) -> set[str]:
    return {word.strip(".,;:()'\"") for word in text.split()}


def _here(imported: Imported, key: str, stories: Sequence[Story]) -> str:
    for story in stories:
        source = story.source
        if source and (source.format, source.key) == (imported.kind.value, key):
            return story.id
    return ""
