"""Moments and durations as people and agents wrote them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}(?:$|[T ]\d)")
_PART = re.compile(
    r"(\d+(?:\.\d+)?)\s*(?:(?:-|–|to)\s*(\d+(?:\.\d+)?))?\s*"
    r"(d(?:ays?)?|h(?:ours?|rs?)?|m(?:in(?:ute)?s?|ins?)?|s(?:ec(?:ond)?s?)?)?(?![a-z])",
    re.IGNORECASE,
)
_MINUTES = {"d": 480.0, "h": 60.0, "m": 1.0, "s": 1 / 60}
"""A day of estimated work is eight hours."""

_FINISH = "completed|complete|finished|finish|done|closed|ended|end|completion"
_START = "started|start|begun|begin|claimed|acquired"
_CREATE = "created|added|opened|creation"
_STAGE = re.compile(
    rf"(?:(?P<stage>[a-z0-9_]+?)_)??(?:(?P<finish>{_FINISH})|(?P<start>{_START})|"
    rf"(?P<create>{_CREATE}))(?:_(?:at|on|date|time|timestamp))?"
)
_TIMELIKE = re.compile(
    r"(?:.*_)?(?:at|on|date|timestamp|heartbeat|expires|updated|tested|integrated|planned|"
    r"merged|modified|corrected)"
)


@dataclass(frozen=True, slots=True)
class Moment:
    at: datetime
    zone: str
    """naive, Z or the offset as written; a naive moment was read as UTC."""


@dataclass(frozen=True, slots=True)
class TimeFact:
    """One time field: `stage` is planning, … or "", `role` start, finish, create or ""."""

    key: str
    line: int
    raw: str
    stage: str
    role: str
    moment: Moment


def parse_moment(value: Any) -> Moment | None:
    """An ISO date or time, or an epoch number (seconds or milliseconds). None = not a moment."""
    try:
        if isinstance(value, str):
            return _parse_iso(value.strip())
        if isinstance(value, int | float) and not isinstance(value, bool):
            seconds = value / 1000 if value > 1e11 else value
            if 1e9 <= seconds < 1e10:
                return Moment(datetime.fromtimestamp(seconds, UTC), "epoch")
    except (ValueError, OverflowError, OSError):
        return None
    return None


def _parse_iso(text: str) -> Moment | None:
    if not _DATE.match(text):
        return None
    cleaned = re.sub(r"\s*(?:UTC|GMT)$", "Z", text)
    moment = datetime.fromisoformat(cleaned)
    if moment.tzinfo is None:
        return Moment(moment.replace(tzinfo=UTC), "naive")
    zone = "Z" if cleaned.endswith(("Z", "z")) else moment.strftime("%z")
    return Moment(moment.astimezone(UTC), zone)


def stage_of(key: str) -> tuple[str, str] | None:
    """(stage, role) of a time field's name; None when the name does not speak of time."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key[:80]).lower()
    match = _STAGE.fullmatch(name)
    if match:
        role = next(r for r in ("finish", "start", "create") if match[r])
        return match["stage"] or "", role
    return ("", "") if _TIMELIKE.fullmatch(name) else None


def parse_minutes(value: Any, *, unit: float = 1.0) -> int | None:
    """`210 min`, `2h 30m`, `1.5 hours`, `60-90 min` (its upper end) or a number of `unit`."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return _whole(value * unit)
    if not isinstance(value, str):
        return None
    total, seen = 0.0, False
    text = value[:60].strip().lstrip("~≈ ").lower()
    at = 0
    for match in _PART.finditer(text):
        if text[at : match.start()].strip(" ,+and"):
            return None
        upper = float(match[2] or match[1])
        total += upper * (_MINUTES[match[3][0].lower()] if match[3] else unit)
        at, seen = match.end(), True
    if not seen or text[at:].strip(" ."):
        return None
    return _whole(total)


def _whole(minutes: float) -> int | None:
    if not math.isfinite(minutes) or minutes <= 0 or minutes > 10_000_000:
        return None
    return max(1, round(minutes))


def parse_ttl(value: Any, key: str, usual_minutes: float) -> tuple[float, bool] | None:
    """(minutes, whether the unit was guessed) of a lease's time to live.

    A bare number is minutes or seconds, whichever is nearer to what is usual for the role.
    """
    if isinstance(value, str) and not re.fullmatch(r"\s*\d+(\.\d+)?\s*", value):
        minutes = parse_minutes(value)
        return (float(minutes), False) if minutes else None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if isinstance(value, bool) or not math.isfinite(number) or number <= 0 or number > 1e9:
        return None
    if key.endswith(("minutes", "min", "mins")):
        return number, False
    if key.endswith(("seconds", "sec", "secs")):
        return number / 60, False
    as_minutes = abs(math.log(number / usual_minutes))
    as_seconds = abs(math.log(number / 60 / usual_minutes))
    return (number, True) if as_minutes <= as_seconds else (number / 60, True)
