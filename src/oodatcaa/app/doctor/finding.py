"""What an examination says: facts that are fine, and findings that are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from oodatcaa.app.project import Project

NO_REPAIR = "nothing: a person decides"


class Severity(StrEnum):
    """`bad` = something the crew relies on is wrong; `note` = worth a look, nothing is at risk."""

    BAD = "bad"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """One thing that does not fit. `code` is stable; `action` names the repair, "" = none."""

    code: str
    place: str
    meaning: str
    repair: str = NO_REPAIR
    severity: Severity = Severity.BAD
    action: str = ""
    subject: str = ""


@dataclass(frozen=True)
class Fact:
    """A line about something that was looked at. `ok` None = neither good nor bad."""

    name: str
    text: str
    ok: bool | None = True


@dataclass(frozen=True)
class Area:
    """One module's part of the examination. `look` may raise OodatcaaError: that is a finding."""

    name: str
    look: Callable[[Project], tuple[tuple[Fact, ...], tuple[Finding, ...]]]


def note(code: str, place: str, meaning: str, repair: str = NO_REPAIR) -> Finding:
    return Finding(code, place, meaning, repair, Severity.NOTE)
