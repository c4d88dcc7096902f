"""Collects findings while a file is read."""

from __future__ import annotations

import json
from typing import Any

from oodatcaa.domain.source import Leftover
from oodatcaa.importers.records import Finding, Severity

MOST_OF_ONE_CODE = 500
"""A file of nothing but damage yields this many findings of one code, then a count."""


class Findings:
    """Identical findings are kept once: both sides of a conflict share most of their text."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._kept: dict[Finding, int] = {}
        self._seen: dict[str, int] = {}
        self._severity: dict[str, Severity] = {}

    def error(self, code: str, line: int | None, message: str, content: object = "") -> None:
        self._add(code, Severity.ERROR, line, message, content)

    def warning(self, code: str, line: int | None, message: str, content: object = "") -> None:
        self._add(code, Severity.WARNING, line, message, content)

    def info(self, code: str, line: int | None, message: str, content: object = "") -> None:
        self._add(code, Severity.INFO, line, message, content)

    def _add(
        self, code: str, severity: Severity, line: int | None, message: str, content: object
    ) -> None:
        finding = Finding(
            code=code,
            severity=severity,
            place=self.source if line is None else f"{self.source}:{line}",
            message=" ".join(message.split()),
            content=content if isinstance(content, str) else as_json(content),
        )
        if finding in self._kept:
            return
        self._seen[code] = self._seen.get(code, 0) + 1
        self._severity[code] = severity
        if self._seen[code] <= MOST_OF_ONE_CODE:
            self._kept[finding] = line or 0

    def all(self) -> tuple[Finding, ...]:
        """In the file's order; what concerns the whole file comes first."""
        found = sorted(self._kept, key=lambda finding: self._kept[finding])
        for code, seen in sorted(self._seen.items()):
            if seen > MOST_OF_ONE_CODE:
                found.append(
                    Finding(
                        code=code,
                        severity=self._severity[code],
                        place=self.source,
                        message=f"and {seen - MOST_OF_ONE_CODE} more of this kind",
                    )
                )
        return tuple(found)


def leftovers(findings: tuple[Finding, ...]) -> tuple[Leftover, ...]:
    """What stands in no other field of a draft, word for word."""
    return tuple(
        Leftover(what=item.message, place=_line_of(item.place), text=item.content)
        for item in findings
        if item.content and item.code == "plan.unmapped"
    )


def _line_of(place: str) -> str:
    """`plan.md:7` as `line 7`: what a file is called is not part of its content."""
    line = place.rpartition(":")[2]
    return f"line {line}" if line.isdecimal() and ":" in place else "the file"


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def short(value: object, limit: int = 80) -> str:
    """`value` as it may stand inside a message: one line, at most `limit` characters."""
    text = value if isinstance(value, str) else as_json(value)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
