"""What every record shares: frozen, strict about unknown fields, changed only by `evolve`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field


def as_utc(moment: datetime) -> datetime:
    """The same instant in UTC. Records never hold a naive or a local time."""
    return moment.astimezone(UTC)


Utc = Annotated[AwareDatetime, AfterValidator(as_utc)]
"""An aware instant, normalised to UTC; a naive datetime is refused."""

GB = 10**9
"""Memory limits are decimal gigabytes: 16 GB = 16e9 bytes."""

SAID_CHARS = 4_000
"""Whoever works can say anything; the queue and its history keep this much of one text."""


def _as_said(value: object) -> object:
    if not isinstance(value, str) or len(value) <= SAID_CHARS:
        return value
    return f"{value[:SAID_CHARS]}… ({len(value)} characters)"


Said = Annotated[str, BeforeValidator(_as_said)]
"""A text that may come from an agent: a longer one is cut, and says so."""
NonEmpty = Annotated[str, Field(min_length=1)]
SomeSaid = Annotated[NonEmpty, BeforeValidator(_as_said)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """A frozen value. Unknown keys are errors, so a typo in a file can not pass unnoticed."""

    # defer_build: commands that never validate a record do not pay for its schema at start-up.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    def evolve(self, **changes: Any) -> Self:
        """A copy with `changes`, validated like a new record.

        Raises pydantic.ValidationError. `model_copy(update=)` would skip the validation.
        """
        parts = self.__dict__  # with what it remembers beside its fields, see cached_property
        values = {name: parts[name] for name in type(self).__pydantic_fields__}
        return type(self).model_validate({**values, **changes})

    @classmethod
    def assembled(cls, parts: dict[str, Any]) -> Self:
        """A record of `parts` that are valid already, one for every field; nothing is checked.

        `model_construct` also looks for defaults and aliases, at ten times the cost.
        """
        made = cls.__new__(cls)
        place = object.__setattr__  # the record's own refuses
        place(made, "__dict__", parts)
        place(made, "__pydantic_fields_set__", set(parts))
        place(made, "__pydantic_extra__", None)
        place(made, "__pydantic_private__", None)
        return made
