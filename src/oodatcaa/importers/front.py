"""The door: which format a file has, and what is in it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

from oodatcaa.domain.base import as_utc
from oodatcaa.errors import OodatcaaError
from oodatcaa.importers.beads import looks_like_beads, read_beads
from oodatcaa.importers.commands import rewrite
from oodatcaa.importers.gsd import read_plan
from oodatcaa.importers.oodatcaa import read_queue
from oodatcaa.importers.own import looks_like_own, read_own
from oodatcaa.importers.records import Imported, ImportKind
from oodatcaa.importers.superpowers import (
    MAX_PLAN_CHARS,
    looks_like_superpowers,
    read_superpowers,
)
from oodatcaa.importers.taskmaster import looks_like_taskmaster, read_taskmaster
from oodatcaa.kit.plan_files import plan_file, read_text

UNDERSTOOD = (
    "oodatcaa: a SPRINT_QUEUE.json of the original process, damaged or not",
    "gsd: a plan with YAML front matter and <objective>, <tasks>, <task> sections",
    "superpowers: Markdown with one # title and headings such as ### Task 1: …",
    "taskmaster: a tasks.json, with or without tags",
    "beads: JSON Lines with one issue a line, or a dump of its table",
    "json: what oodatcaa export --to json writes",
)
_TAGS = re.compile(r"^[ \t]*<(objective|tasks|task|success_criteria|verification)\b", re.MULTILINE)
_QUEUE_KEYS = re.compile(
    r'"(?:tasks|subtasks|stories|parent_task|plan_steps?|depends_on|wip_limits|sprint_id)"\s*:'
)
_TASK_ID = re.compile(r'"id"\s*:\s*"[A-Za-z]{1,3}\d{3,}')
_BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"
_OWN_KEYS = ('"schema_version"', '"revision"', '"stories"')


def detect(path: Path) -> ImportKind:
    """The format of a file, by its content. A folder stands for the queue inside it.

    Raises OodatcaaError: import.unknown_format, import.own_format, or that it can not be read.
    """
    file = plan_file(path)
    return _detect(read_text(file), file)


def import_file(
    path: Path,
    *,
    now: datetime,
    kind: ImportKind | None = None,
    maps: Mapping[str, str] | None = None,
) -> Imported:
    """Everything in a file as records, with a finding for each thing that is odd about it.

    `now` is aware; `kind` forces a format instead of looking for it; `maps` rewrites paths in the
    text before it is read. Nothing is written and no command in the file is run. Raises
    OodatcaaError only when there is nothing to read: see `detect`, and import.wrong_format.
    """
    file = plan_file(path)
    text = read_text(file)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    chosen = kind or _detect(text, file)
    if kind is not None and not looks_like(text, kind):
        _refuse_wrong(text, file, kind)
    if chosen in _PLANS and len(text) > MAX_PLAN_CHARS:
        raise OodatcaaError(
            "import.too_large",
            f"{file} is larger than {MAX_PLAN_CHARS // 1_000_000} MB; no plan is",
            hint="cut out the plan itself and import that",
        )
    text, unused = rewrite(text, maps or {})
    read = _READERS[chosen](text, file.name, as_utc(now))
    return read.evolve(file_sha256=digest, unused_maps=unused)


def _refuse_wrong(text: str, path: Path, kind: ImportKind) -> None:
    """Raises OodatcaaError when the text is in no way what `kind` says it is."""
    other = next((item for item in ImportKind if _clearly(text, item)), None)
    raise OodatcaaError(
        "import.wrong_format",
        f"{path} is no {kind.value} file" + (f"; it looks like {other.value}" if other else ""),
        hint=f"oodatcaa import {path}" + (f" --from {other.value}" if other else ""),
        details=(f"understood: {line}" for line in UNDERSTOOD),
    )


def _clearly(text: str, kind: ImportKind) -> bool:
    """Like `looks_like`, but a queue has to show something of one."""
    return looks_like(text, kind) and (kind is not ImportKind.OODATCAA or _queue_like(text))


def _detect(text: str, path: Path) -> ImportKind:
    for kind in ImportKind:
        if looks_like(text, kind) and kind is not ImportKind.OODATCAA:
            return kind
    if all(key in text[:5_000] for key in _OWN_KEYS):
        raise OodatcaaError(
            "import.own_format",
            f"{path} is a queue of this very program; there is nothing to import",
            hint="oodatcaa doctor checks and repairs it; oodatcaa export --to json moves its plans",
        )
    if _queue_like(text):
        return ImportKind.OODATCAA
    raise OodatcaaError(
        "import.unknown_format",
        f"{path} is in no format that can be imported",
        hint="oodatcaa import --from oodatcaa FILE reads it as a queue, whatever it looks like",
        details=(f"understood: {line}" for line in UNDERSTOOD),
    )


def looks_like(text: str, kind: ImportKind) -> bool:
    """Whether it makes sense to read `text` as `kind`; a queue may be damaged beyond telling."""
    if kind is ImportKind.GSD:
        tags = {match[1] for match in _TAGS.finditer(text)}
        front = text.lstrip(_BOM).lstrip().startswith("---")
        return len(tags) >= 2 or (front and bool(tags))
    if kind is ImportKind.OODATCAA:
        return not text.strip() or not any(
            looks_like(text, other) for other in ImportKind if other is not ImportKind.OODATCAA
        )
    return _LIKE[kind](text)


def _queue_like(text: str) -> bool:
    return "{" in text and bool(_QUEUE_KEYS.search(text) or _TASK_ID.search(text))


_LIKE: dict[ImportKind, Callable[[str], bool]] = {
    ImportKind.SUPERPOWERS: looks_like_superpowers,
    ImportKind.TASKMASTER: looks_like_taskmaster,
    ImportKind.BEADS: looks_like_beads,
    ImportKind.JSON: looks_like_own,
}
_READERS: dict[ImportKind, Callable[[str, str, datetime], Imported]] = {
    ImportKind.OODATCAA: lambda text, name, now: read_queue(text, source=name, now=now),
    ImportKind.GSD: lambda text, name, _: read_plan(text, source=name),
    ImportKind.SUPERPOWERS: lambda text, name, _: read_superpowers(text, source=name),
    ImportKind.TASKMASTER: lambda text, name, _: read_taskmaster(text, source=name),
    ImportKind.BEADS: lambda text, name, _: read_beads(text, source=name),
    ImportKind.JSON: lambda text, name, _: read_own(text, source=name),
}
_PLANS = (ImportKind.GSD, ImportKind.SUPERPOWERS)
