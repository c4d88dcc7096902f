"""A plan of another tool against this repository: what leaves it, what is not in it, what decides
nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path, PurePosixPath

from oodatcaa.app.project import Project
from oodatcaa.domain.draft import DraftStory
from oodatcaa.domain.evidence import GateKind
from oodatcaa.domain.source import Leftover
from oodatcaa.domain.trivial import ends_well_anyway
from oodatcaa.errors import OodatcaaError, RefusedError
from oodatcaa.importers import Finding, Imported, ImportKind, Severity, as_drafts, import_file


def read_file(
    project: Project,
    path: Path,
    now: datetime,
    kind: ImportKind | None,
    maps: Mapping[str, str],
) -> Imported:
    """What is in a file, with what is odd about it here. Raises what `import_file` raises."""
    read = as_drafts(import_file(path, now=now, kind=kind, maps=maps))
    found = [
        _finding(read, "map.unused", f"--map {old}=…: this file does not name {old}")
        for old in read.unused_maps
    ]
    drafts = []
    for draft in read.drafts:
        kept, problems = _references(project.root, read, draft)
        drafts.append(kept)
        found += [*problems, *_trivial(read, draft)]
    return read.evolve(drafts=tuple(drafts), findings=(*read.findings, *found))


def _finding(
    read: Imported, code: str, message: str, severity: Severity = Severity.WARNING
) -> Finding:
    return Finding(code=code, severity=severity, place=read.source, message=message)


def _references(root: Path, read: Imported, draft: DraftStory) -> tuple[DraftStory, list[Finding]]:
    """The draft without files outside of the repository: no agent is told to read them."""
    found = []
    left = []
    for path in draft.references:
        if outside(root, path):
            left.append(path)
            message = f"{draft.key}: nobody is told to read {path}: it is not in this repository"
            found.append(_finding(read, "plan.reference_outside", message))
        elif not (root / path).exists():
            message = f"{draft.key}: it wants {path} to be read, which does not exist here"
            found.append(_finding(read, "plan.reference", message, Severity.INFO))
    if not left:
        return draft, found
    kept = tuple(
        Leftover(what="to be read, outside of this repository", place="the file", text=path)
        for path in left
    )
    references = tuple(path for path in draft.references if path not in left)
    return draft.evolve(references=references, leftovers=(*draft.leftovers, *kept)), found


def _trivial(read: Imported, draft: DraftStory) -> list[Finding]:
    return [
        _finding(
            read,
            "check.trivial",
            f"{draft.key}: {gate.command!r} would pass whatever was built",
        )
        for gate in draft.gates
        if gate.kind is GateKind.COMMAND
        and gate.expect == "success"
        and ends_well_anyway(gate.command)
    ]


def refuse_unfit(project: Project, read: Sequence[Imported]) -> None:
    """Raises OodatcaaError import.nothing, import.same_key, RefusedError import.outside."""
    _refuse_empty(read)
    _refuse_one_key_twice(read)
    _refuse_outside(project, read)


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


def _refuse_one_key_twice(read: Sequence[Imported]) -> None:
    """Raises OodatcaaError when two files hold different work under one name: one would be lost."""
    known: dict[tuple[str, str], tuple[str, DraftStory]] = {}
    for item in read:
        for draft in item.drafts:
            file, other = known.setdefault((item.kind, draft.key), (item.source, draft))
            if other != draft:
                raise OodatcaaError(
                    "import.same_key",
                    f"{file} and {item.source} both hold {draft.key}, and not the same work",
                    hint="give one of them another phase, plan, id or title",
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
