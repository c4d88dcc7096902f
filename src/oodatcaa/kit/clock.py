"""The framework's clock."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> datetime:
    """This moment, aware, in UTC. Everything that stamps a record takes a callable like this."""
    return datetime.now(UTC)
