"""A waiver: apart from evidence, for boards hold them and evidence is large."""

from __future__ import annotations

from oodatcaa.domain.base import NonEmpty, Record, Utc


class Waiver(Record):
    """A person's decision that one gate does not have to pass, until a moment."""

    gate_id: NonEmpty
    by: NonEmpty
    why: NonEmpty
    at: Utc
    until: Utc
