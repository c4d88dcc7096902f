"""The published JSON Schema of SPRINT_QUEUE.json, generated from the records."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from pydantic import ValidationError

from oodatcaa.state.snapshot import QueueFile

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_LONGEST = 240


@cache
def queue_schema() -> dict[str, Any]:
    """Draft 2020-12. Do not change what it returns."""
    generated = QueueFile.model_json_schema(by_alias=True)
    return {"$schema": DIALECT, **generated, "title": "SPRINT_QUEUE.json"}


def schema_text() -> str:
    return json.dumps(queue_schema(), indent=2) + "\n"


def schema_problems(document: Any) -> list[str]:
    """Everything the schema and then the records have against `document`; empty = valid."""
    from jsonschema import Draft202012Validator

    errors = Draft202012Validator(queue_schema()).iter_errors(document)
    found = [
        f"{_where(error.absolute_path)}: {_short(error.message)}"
        for error in sorted(errors, key=lambda error: [str(part) for part in error.absolute_path])
    ]
    if found:
        return found
    try:
        QueueFile.model_validate(document)
    except ValidationError as error:  # dates for instance: formats are not checked by a schema
        return [f"{_where(one['loc'])}: {_short(one['msg'])}" for one in error.errors()]
    return []


def _where(path: Any) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.lstrip(".") or "the document"


def _short(message: str) -> str:
    return message if len(message) <= _LONGEST else message[: _LONGEST - 2] + " …"
