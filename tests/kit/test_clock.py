"""Moments as people write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as some

from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.clock import parse_moment

NOW = datetime(2026, 1, 30, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2h", NOW - timedelta(hours=2)),
        ("90m", NOW - timedelta(minutes=90)),
        ("90 min", NOW - timedelta(minutes=90)),
        ("1d12h", NOW - timedelta(hours=36)),
        (" 1w 2d ", NOW - timedelta(days=9)),
        ("1.5h", NOW - timedelta(minutes=90)),
        ("45s", NOW - timedelta(seconds=45)),
        ("2026-01-30", datetime(2026, 1, 30, tzinfo=UTC)),
        ("2026-01-30T08:15", datetime(2026, 1, 30, 8, 15, tzinfo=UTC)),
        ("2026-01-30 08:15:30", datetime(2026, 1, 30, 8, 15, 30, tzinfo=UTC)),
        ("2026-01-30T08:15:00Z", datetime(2026, 1, 30, 8, 15, tzinfo=UTC)),
        ("2026-01-30T09:15:00+01:00", datetime(2026, 1, 30, 8, 15, tzinfo=UTC)),
    ],
)
def test_what_people_write(text: str, meant: datetime) -> None:
    assert parse_moment(text, NOW) == meant


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2", "h", "2x", "-2h", "2026-13-01", "2026-01-30T25:00", "9" * 40 + "d",
     "0001-01-01T00:00+10:00"],
)  # fmt: skip
def test_what_can_not_be_a_moment(text: str) -> None:
    with pytest.raises(OodatcaaError) as caught:
        parse_moment(text, NOW)
    assert caught.value.code == "time.unreadable"
    assert "2h" in caught.value.hint


zones = some.integers(-720, 840).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(some.datetimes(timezones=zones).filter(lambda at: 1 < at.year < 9999))
def test_every_iso_moment_is_read_back(moment: datetime) -> None:
    assert parse_moment(moment.isoformat(), NOW) == moment


@given(some.text())
def test_any_text_is_a_moment_or_an_error_that_teaches(text: str) -> None:
    try:
        moment = parse_moment(text, NOW)
    except OodatcaaError as error:
        code = error.code
    else:
        code = "" if moment.tzinfo is UTC else "not UTC"
    assert code in ("", "time.unreadable")
