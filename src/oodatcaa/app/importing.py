"""Take plans of other tools into the sprint, or show what would be taken."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from oodatcaa.app.allowing import is_allowed
from oodatcaa.app.archiving import CARRIED
from oodatcaa.app.project import Project
from oodatcaa.app.sprints import carried_work
from oodatcaa.domain.adopting import Adopted, Incoming, Outcome, adopt
from oodatcaa.domain.base import Record
from oodatcaa.domain.board import Board, Decision
from oodatcaa.domain.draft import DraftStory
from oodatcaa.domain.evidence import GateKind
from oodatcaa.domain.source import Source
from oodatcaa.domain.task import Story
from oodatcaa.domain.trivial import ends_well_anyway
from oodatcaa.errors import EXIT_USAGE, OodatcaaError, RefusedError
from oodatcaa.importers import Finding, Imported, ImportKind, Severity, as_drafts, import_file
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
            return "oodatcaa import FILE without --dry-run"
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
    read = [_read(path, now, kind, maps) for path in paths]
    _refuse_empty(read)
    _refuse_outside(project, read)
    pairs = [(item, draft) for item in read for draft in item.drafts]
    allowed = project.config.imports.allow
    incoming = tuple(_incoming(item, draft, allowed) for item, draft in pairs)
    settled = frozenset(assume_done) | {key for item in read for key in item.done}
    drafts = tuple(draft for _, draft in pairs)
    taken = _take(project, incoming, settled, drafts, read, dry_run=dry_run)
    _raise_refused(taken[1], dry_run=dry_run)
    known = {item.story for item in taken[1]}
    return ImportReport(
        dry_run=dry_run,
        sprint=project.board().sprint is not None,
        files=tuple(read),
        adopted=taken[1],
        stories=tuple(story for story in taken[0].stories if story.id in known),
        drafts=drafts,
    )


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


def _read(path: Path, now: datetime, kind: ImportKind | None, maps: Mapping[str, str]) -> Imported:
    read = import_file(path, now=now, kind=kind, maps=maps)
    unused = tuple(
        Finding(
            code="map.unused",
            severity=Severity.WARNING,
            place=read.source,
            message=f"--map {old}=…: this file does not name {old}",
        )
        for old in read.unused_maps
    )
    drafts = as_drafts(read)
    nothing = tuple(
        Finding(
            code="check.trivial",
            severity=Severity.WARNING,
            place=read.source,
            message=f"{draft.key}: {gate.command!r} would pass whatever was built",
        )
        for draft in drafts.drafts
        for gate in draft.gates
        if gate.kind is GateKind.COMMAND
        and gate.expect == "success"
        and ends_well_anyway(gate.command)
    )
    return drafts.evolve(findings=(*read.findings, *unused, *nothing))


def outside(root: Path, path: str) -> str:
    """Why a plan's path is not one in the repository; empty = it is."""
    plain = path.strip().replace("\\", "/")
    if plain.startswith(("/", "~")) or re.match(r"[A-Za-z]:/", plain) or "\0" in plain:
        return f"{path} is no path in this repository"
    parts = PurePosixPath(plain).parts
    if ".." in parts:
        return f"{path} leaves this repository"
    if parts[:1] == (".git",):
        return f"{path} is git's own"
    try:
        if not (root / plain).resolve().is_relative_to(root.resolve()):
            return f"{path} leaves this repository through a link"
    except OSError as error:
        return f"{path} can not be a path here: {error.strerror}"
    return ""


def _refuse_empty(read: Sequence[Imported]) -> None:
    """Raises OodatcaaError when a file gives no work at all: whoever named it expected some."""
    for item in read:
        if item.empty:
            raise OodatcaaError(
                "import.nothing",
                f"{item.source}: nothing could be recovered from it as {item.kind.value}",
                hint="mend what is listed, or name another format with --from",
                details=item.lines()[1:],
            )


def _refuse_outside(project: Project, read: Sequence[Imported]) -> None:
    problems = [
        f"{item.source}: {draft.key}: {problem}"
        for item in read
        for draft in item.drafts
        for path in draft.paths
        if (problem := outside(project.root, path))
    ]
    if problems:
        raise RefusedError(
            "import.outside",
            f"{len(problems)} path{'s leave' if len(problems) != 1 else ' leaves'} the repository: "
            f"{problems[0]}",
            hint="--map OLD=NEW rewrites a path of another machine; nothing was imported",
            details=problems,
        )


def _incoming(item: Imported, draft: DraftStory, allowed: Sequence[str]) -> Incoming:
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
        needs=draft.depends_on,
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
        decided = adopt(
            board,
            now,
            incoming=incoming,
            assume_done=settled,
            past=tuple(line for item in read for line in item.told),
        )
        refused = any(item.outcome is Outcome.REFUSED for item in decided.value)
        return Decision(board, decided.value) if refused else decided

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


def _raise_refused(adopted: tuple[Adopted, ...], *, dry_run: bool) -> None:
    refused = [item for item in adopted if item.outcome is Outcome.REFUSED]
    if refused and not dry_run:
        raise RefusedError(
            "import.changed",
            f"{len(refused)} of {len(adopted)} stories changed after they were begun; nothing was "
            f"imported: {refused[0].why}",
            hint=f"oodatcaa show {refused[0].story}",
            details=(item.why for item in refused),
        )
