"""What every record shares: frozen, strict about unknown fields, changed only by `evolve`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Self

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field


def as_utc(moment: datetime) -> datetime:
    """The same instant in UTC. Records never hold a naive or a local time."""
    return moment.astimezone(UTC)


Utc = Annotated[AwareDatetime, AfterValidator(as_utc)]
"""An aware instant, normalised to UTC; a naive datetime is refused."""

GB = 10**9
"""Memory limits are decimal gigabytes: 16 GB = 16e9 bytes."""

NonEmpty = Annotated[str, Field(min_length=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """A frozen value. Unknown keys are errors, so a typo in a file can not pass unnoticed."""

    # defer_build: commands that never validate a record do not pay for its schema at start-up.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    def evolve(self, **changes: Any) -> Self:
        """A copy with `changes`, validated like a new record.

        Raises pydantic.ValidationError. `model_copy(update=)` would skip the validation.
        """
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate({**values, **changes})
