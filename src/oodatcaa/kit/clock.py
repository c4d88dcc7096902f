"""The framework's clock, and moments as people write them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from oodatcaa.errors import EXIT_USAGE, OodatcaaError

_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(min|[smhdw])\s*")


def utc_now() -> datetime:
    """This moment, aware, in UTC. Everything that stamps a record takes a callable like this."""
    return datetime.now(UTC)


def parse_moment(text: str, now: datetime) -> datetime:
    """The UTC moment that `text` means: ISO 8601 with or without a zone (then UTC), a date (its
    first second, UTC), or a span before `now` such as 90m, 2h, 1d 12h. Raises OodatcaaError
    `time.unreadable`."""
    words = text.strip()
    if _SPAN.match(words) and not _SPAN.sub("", words):
        seconds = sum(float(amount) * _UNITS[unit] for amount, unit in _SPAN.findall(words))
        try:
            return (now - timedelta(seconds=seconds)).astimezone(UTC)
        except OverflowError as error:
            raise _unreadable(text) from error
    try:
        moment = datetime.fromisoformat(words)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise _unreadable(text) from error


def _unreadable(text: str) -> OodatcaaError:
    return OodatcaaError(
        "time.unreadable",
        f"{text!r} is neither a moment nor a span of time",
        hint="write for example 2h, 1d12h, 2026-01-30, 2026-01-30T08:00 (UTC) or "
        "2026-01-30T09:00+01:00",
        exit_code=EXIT_USAGE,
    )
