"""Take plans of other tools into the sprint, or show what would be taken."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic import Field

from oodatcaa.app.allowing import is_allowed
from oodatcaa.app.archiving import CARRIED
from oodatcaa.app.import_checks import outside, read_file, refuse_unfit
from oodatcaa.app.import_order import Waves, earlier_wave, waves_of
from oodatcaa.app.project import Project
from oodatcaa.app.sprints import carried_stories, carried_work
from oodatcaa.domain.adopting import Adopted, Incoming, Outcome, adopt
from oodatcaa.domain.base import Record
from oodatcaa.domain.board import Board, Decision
from oodatcaa.domain.draft import DraftStory
from oodatcaa.domain.draft_changes import draft_changes
from oodatcaa.domain.source import Source
from oodatcaa.domain.task import Story
from oodatcaa.errors import EXIT_USAGE, OodatcaaError, RefusedError
from oodatcaa.importers import Finding, Imported, ImportKind
from oodatcaa.importers.commands import foreign_paths
from oodatcaa.kit.files import write_atomic
from oodatcaa.kit.locks import FileLock

MINUTES_PER_STEP = 15
"""A planning estimate for a step whose plan names none."""


class ImportReport(Record):
    """What an import made, or would make with `dry_run`."""

    dry_run: bool
    sprint: bool = True
    files: tuple[Imported, ...]
    adopted: tuple[Adopted, ...]
    stories: tuple[Story, ...]
    drafts: tuple[DraftStory, ...]
    again: str = Field(description="the command line that imports it, loose ends settled")
    changes: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="story -> what differs from its earlier version"
    )

    def summaries(self) -> tuple[str, ...]:
        """One line a file, then one a finding."""
        return tuple(line for item in self.files for line in item.lines())

    def over(self) -> tuple[str, ...]:
        """One line for each piece of work that a file says is finished or given up."""
        return tuple(line for item in self.files for line in item.told)

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(finding for item in self.files for finding in item.findings)

    @property
    def next_command(self) -> str:
        if self.dry_run:
            return self.again
        waits = [s.id for s in self.stories if s.source is not None and s.source.wants_approval]
        held = [s.id for s in self.stories if s.source is not None and s.source.held_back]
        if held:
            return f"oodatcaa show {held[0]}"
        if not self.sprint:
            return "oodatcaa sprint new"
        if waits:
            return f"oodatcaa show {waits[0]}, then oodatcaa approve {' '.join(waits)} --why …"
        return "oodatcaa run"

    @property
    def changed(self) -> bool:
        made = (Outcome.CREATED, Outcome.UPDATED)
        return any(item.outcome in made for item in self.adopted)


def import_plans(
    project: Project,
    paths: Sequence[Path],
    *,
    kind: ImportKind | None = None,
    maps: Mapping[str, str] | None = None,
    assume_done: Sequence[str] = (),
    dry_run: bool = False,
) -> ImportReport:
    """Read every file, then take all of them or none. Nothing in them is run.

    With an open sprint the stories join it; otherwise they wait for the next `sprint new`.
    Raises OodatcaaError for a file that can not be read, and RefusedError import.outside listing
    every path that leaves the repository.
    """
    maps = checked_maps(project, maps or {})
    now = datetime.now(UTC)
    read = [read_file(project, path, now, kind, maps) for path in paths]
    refuse_unfit(project, read)
    pairs = [(item, draft) for item in read for draft in item.drafts]
    allowed = project.config.imports.allow
    before = _drafts_now(project)
    waves = waves_of(project, before, pairs)
    incoming = tuple(_incoming(item, draft, allowed, waves) for item, draft in pairs)
    settled = frozenset(assume_done) | {key for item in read for key in item.done}
    drafts = tuple(draft for _, draft in pairs)
    taken = _take(project, incoming, settled, drafts, read, dry_run=dry_run)
    known = {item.story for item in taken[1]}
    stories = tuple(story for story in taken[0].stories if story.id in known)
    return ImportReport(
        dry_run=dry_run,
        sprint=project.board().sprint is not None,
        files=tuple(read),
        adopted=taken[1],
        stories=stories,
        drafts=drafts,
        again=_again(paths, kind, maps, assume_done, stories),
        changes=_changes(taken[1], drafts, before),
    )


def _again(
    paths: Sequence[Path],
    kind: ImportKind | None,
    maps: Mapping[str, str],
    assume_done: Sequence[str],
    stories: Sequence[Story],
) -> str:
    """The import as a command line, with an option for each loose end that is left."""
    sources = [story.source for story in stories if story.source is not None]
    foreign = dict.fromkeys(path for source in sources for path in source.foreign)
    open_keys = dict.fromkeys(key for source in sources for key in source.unsettled)
    words = ["oodatcaa", "import", *(shlex.quote(str(path)) for path in paths)]
    words += ["--from", kind.value] if kind else []
    for old, new in maps.items():
        words += ["--map", shlex.quote(f"{old}={new}")]
    for key in assume_done:
        words += ["--assume-done", shlex.quote(key)]
    for path in list(foreign)[:_MOST_TOLD]:
        words += ["--map", f"{shlex.quote(path)}=PATH"]
    for key in list(open_keys)[:_MOST_TOLD]:
        words += ["--assume-done", shlex.quote(key)]
    return " ".join(words)


_MOST_TOLD = 4
"""Loose ends of one kind that the next command names."""


def _drafts_now(project: Project) -> dict[str, DraftStory]:
    """Story -> the draft that it was made from, before this import."""
    found = {}
    for story in project.board().stories or carried_stories(project):
        if story.source is not None:
            try:
                found[story.id] = project.drafts.get(story.source)
            except OodatcaaError:
                continue  # nothing to compare with
    return found


def _changes(
    adopted: Sequence[Adopted], drafts: Sequence[DraftStory], before: Mapping[str, DraftStory]
) -> dict[str, tuple[str, ...]]:
    """Story -> what is different in the file now."""
    return {
        item.story: draft_changes(before[item.story], draft)
        for item, draft in zip(adopted, drafts, strict=True)
        if item.outcome in (Outcome.UPDATED, Outcome.KEPT) and item.story in before
    }


def parse_maps(texts: Sequence[str]) -> dict[str, str]:
    """`OLD=NEW` texts. Raises OodatcaaError for one without both."""
    found = {}
    for text in texts:
        old, equals, new = text.partition("=")
        if not equals or not old.strip() or not new.strip():
            raise OodatcaaError(
                "import.map",
                f"{text!r} is not OLD=NEW",
                hint="for example --map /Users/someone/project=.",
                exit_code=EXIT_USAGE,
            )
        found[old.strip()] = new.strip()
    return found


def checked_maps(project: Project, maps: Mapping[str, str]) -> dict[str, str]:
    """Raises OodatcaaError when a new path leaves the repository."""
    for old, new in maps.items():
        problem = outside(project.root, new)
        if problem:
            raise RefusedError(
                "import.outside",
                f"--map {old}={new}: {problem}",
                hint="NEW is a path in this repository, for example . or backend",
            )
    return dict(maps)


def _incoming(item: Imported, draft: DraftStory, allowed: Sequence[str], waves: Waves) -> Incoming:
    commands = draft.commands
    foreign = tuple(dict.fromkeys(path for line in commands for path in foreign_paths(line)))
    source = Source(
        format=item.kind.value,
        file=item.source,
        key=draft.key,
        file_sha256=item.file_sha256,
        draft_sha256=draft.fingerprint,
        commands=0 if all(is_allowed(line, allowed) for line in commands) else len(commands),
        foreign=foreign,
        leftovers=draft.leftovers,
    )
    minutes = sum(step.estimate_minutes or MINUTES_PER_STEP for step in draft.steps)
    return Incoming(
        source=source,
        title=draft.title,
        slug=draft.slug,
        goal=draft.goal,
        kind=draft.kind,
        estimate_minutes=draft.estimate_minutes or max(1, minutes),
        needs=tuple(dict.fromkeys((*draft.depends_on, *earlier_wave(item, draft, waves)))),
        files=draft.files,
        prefer_id=draft.prefer_id,
    )


def _take(
    project: Project,
    incoming: tuple[Incoming, ...],
    settled: frozenset[str],
    drafts: tuple[DraftStory, ...],
    read: Sequence[Imported],
    *,
    dry_run: bool,
) -> tuple[Board, tuple[Adopted, ...]]:
    live = project.board().sprint is not None and not dry_run

    def decide(board: Board, now: datetime) -> Decision[tuple[Adopted, ...]]:
        if live and board.sprint is None:
            raise RefusedError("sprint.none", "the sprint was closed meanwhile", hint="again")
        return adopt(
            board,
            now,
            incoming=incoming,
            assume_done=settled,
            past=tuple(line for item in read for line in item.told),
        )

    now = datetime.now(UTC)
    if dry_run:
        board = project.board()
        decided = decide(board if board.sprint else _waiting(project), now)
        return decided.board, decided.value
    keep_drafts(project, drafts, read)
    if live:
        from oodatcaa.app.sprint_view import negotiate_and_show

        adopted = project.store.transact(decide)
        if any(item.outcome in (Outcome.CREATED, Outcome.UPDATED) for item in adopted):
            negotiate_and_show(project)
        return project.board(), adopted
    project.work.mkdir(parents=True, exist_ok=True)
    with FileLock(project.work / "carried.lock").held():
        decided = decide(_waiting(project), now)
        if decided.events:
            waiting = carried_work(project).evolve(stories=decided.board.stories)
            write_atomic(project.work / CARRIED, waiting.model_dump_json(indent=2) + "\n")
    return decided.board, decided.value


def _waiting(project: Project) -> Board:
    waiting = carried_work(project)
    return Board(stories=waiting.stories, subtasks=waiting.subtasks)


def keep_drafts(
    project: Project, drafts: Sequence[DraftStory], read: Sequence[Imported] = ()
) -> None:
    """Written before the queue names them, each under its own hash: never over another."""
    for draft in drafts:
        project.drafts.put(draft)
    for item in read:
        project.drafts.put_import(item.file_sha256, item.model_dump_json(indent=2))
