"""The published JSON Schema of SPRINT_QUEUE.json, generated from the records."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from oodatcaa import __version__
from oodatcaa.domain.base import Utc
from oodatcaa.state.snapshot import MADE_BY, QueueFile

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_LONGEST = 240
_Place = tuple[str | int, ...]
_INSTANT: TypeAdapter[Any] = TypeAdapter(Utc)
_TAGS = frozenset({"process", "manual"})
"""Pydantic names the member of a union in the place of an error; the document has no such key."""


@cache
def queue_schema() -> dict[str, Any]:
    """Draft 2020-12. Do not change what it returns."""
    generated = QueueFile.model_json_schema(by_alias=True)
    made = f"{MADE_BY} {__version__}"
    return {"$schema": DIALECT, "$comment": made, **generated, "title": "SPRINT_QUEUE.json"}


def schema_text() -> str:
    return json.dumps(queue_schema(), indent=2) + "\n"


def schema_problems(document: Any) -> list[str]:
    """Everything the schema and the records have against `document`; empty = valid."""
    from jsonschema import Draft202012Validator, FormatChecker

    formats = FormatChecker(formats=())
    formats.checks("date-time")(_is_instant)  # jsonschema itself lets any text pass
    validator = Draft202012Validator(queue_schema(), format_checker=formats)
    by_record = _record_problems(document)
    found: list[tuple[_Place, str]] = []
    known: set[_Place] = set()
    for error in validator.iter_errors(document):
        path = tuple(error.absolute_path)
        below = any(place[: len(path)] == path and place != path for place in by_record)
        if error.validator in ("anyOf", "oneOf") and below:
            continue  # "not valid under any of the given schemas": the records say what and where
        found.append((path, _short(error.message)))
        known.add(path)
        if error.validator in ("required", "additionalProperties"):
            known |= {
                place
                for place in by_record
                if place[:-1] == path and f"'{place[-1]}'" in error.message
            }
    found += [(place, why) for place, why in by_record.items() if place not in known]
    found.sort(key=lambda one: ([_rank(part) for part in one[0]], one[1]))
    return [f"{_where(place)}: {why}" for place, why in found]


def _rank(part: str | int) -> str:
    return f"{part:09}" if isinstance(part, int) else part


def _record_problems(document: Any) -> dict[_Place, str]:
    """What the records have against it: also what no schema can say."""
    try:
        QueueFile.model_validate(document)
    except ValidationError as error:
        return {
            tuple(part for part in one["loc"] if part not in _TAGS): _short(one["msg"])
            for one in error.errors()
        }
    return {}


def _is_instant(value: object) -> bool:
    """RFC 3339 with an offset, as the records ask for it; what is no text is not its business."""
    if not isinstance(value, str):
        return True
    try:
        _INSTANT.validate_json(json.dumps(value))
    except ValidationError:
        return False
    return True


def _where(path: Any) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.lstrip(".") or "the document"


def _short(message: str) -> str:
    return message if len(message) <= _LONGEST else message[: _LONGEST - 2] + " …"
