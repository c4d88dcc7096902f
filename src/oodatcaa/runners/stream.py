"""An agent's output, understood by its StreamSpec: session, answer, errors, refusals and usage."""

from __future__ import annotations

import json
import re
from typing import Any

from oodatcaa.domain.agents import CommandSpec, Ending, Match, Scalar, Usage, UsageAt

TEXT_LIMIT = 400_000
"""Characters of the answer that are kept: enough for a plan, too little to fill the memory."""
LINE_LIMIT = 4_000_000
"""A longer line is no event of any agent; it is passed over and counted."""
MOST = 1e15
"""More tokens or dollars than this are a mistake of whoever says so."""
MISSING = object()
_SESSION = re.compile(r"\w[^\s\0]{0,299}")
"""It becomes a word of the next command line: an agent must not choose options there."""
MOST_DENIED = 20
"""Refused permissions of one call that are named."""


def at(value: Any, path: str) -> Any:
    """What stands at a dotted path (`a.b.0.c`), or MISSING."""
    for word in path.split(".") if path else ():
        if isinstance(value, dict) and word in value:
            value = value[word]
        elif isinstance(value, list) and word.isdigit() and int(word) < len(value):
            value = value[int(word)]
        else:
            return MISSING
    return value


def matches(event: Any, when: dict[str, Scalar]) -> bool:
    return all(_same(at(event, path), wanted) for path, wanted in when.items())


def _same(found: Any, wanted: Scalar) -> bool:
    # True == 1 in Python; in an event they are different things.
    return type(found) is type(wanted) and bool(found == wanted)


class Lines:
    """Cuts chunks of bytes into lines with a bounded memory."""

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._rest = bytearray()
        self._limit = limit
        self._skipping = False
        self.skipped = 0

    def add(self, chunk: bytes) -> list[str]:
        found = []
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            line = self._finish(part)
            if line is not None:
                found.append(line)
        self._grow(rest)
        return found

    def last(self) -> list[str]:
        """What came after the last line end."""
        line = self._finish(b"")
        return [line] if line else []

    def _grow(self, part: bytes) -> None:
        if self._skipping or not part:
            return
        self._rest += part
        if len(self._rest) > self._limit:
            self._rest.clear()
            self._skipping = True

    def _finish(self, part: bytes) -> str | None:
        self._grow(part)
        if self._skipping:
            self._skipping = False
            self.skipped += 1
            return None
        line = self._rest.decode("utf-8", errors="replace").rstrip("\r")
        self._rest.clear()
        return line


class Reader:
    """Feed it lines; it knows at any time what the agent said and used so far."""

    def __init__(self, spec: CommandSpec) -> None:
        self._spec = spec
        self._stream = spec.stream
        self.session = ""
        self.text = ""
        self.succeeded = False
        self.errors: list[str] = []
        self.denied: list[str] = []
        self.events = 0
        self._each: dict[tuple[int, str], Usage] = {}
        self._total: Usage | None = None

    @property
    def usage(self) -> Usage:
        """Of this call so far; what was never said is None."""
        found = self._total or sum(self._each.values(), Usage())
        prices = self._spec.prices
        if found.cost_usd is None and prices is not None and found.tokens is not None:
            cost = (found.input_tokens or 0) * prices.input + (
                found.output_tokens or 0
            ) * prices.output
            return found.evolve(cost_usd=cost / 1e6)
        return found

    def add(self, line: str) -> None:
        if self._stream.format == "text":
            self._add_text(line + "\n")
            if line.startswith(self._stream.error_text or ("\0",)):
                self.errors = [line[:300]]
            return
        event = _event(line)
        if event is None:
            return
        self.events += 1
        for path in self._stream.session:
            found = at(event, path)
            if isinstance(found, str) and _SESSION.fullmatch(found):
                self.session = found
        self._answer(event)
        self._verdict(event)
        for place, rule in enumerate(self._stream.usage):
            if matches(event, rule.when):
                self._count(place, rule, event)

    @property
    def last_error(self) -> str:
        return self.errors[-1] if self.errors else ""

    def ending(self, exit_code: int | None) -> tuple[Ending, str]:
        """(how it ended, why) once the process is over by itself."""
        if exit_code == 127:
            return Ending.MISSING, "its program was not found (exit code 127)"
        if self.errors:
            return Ending.ERROR, f"it reported an error (exit code {exit_code}): {self.errors[-1]}"
        if self.denied:
            count = f"{len(self.denied)} permission{'s' if len(self.denied) != 1 else ''}"
            return Ending.DENIED, f"it was refused {count}: " + "; ".join(self.denied[:3])
        if self._stream.format == "jsonl" and not self.succeeded:
            return Ending.ERROR, f"it ended (exit code {exit_code}) without an event of success"
        if exit_code != 0:
            return Ending.ERROR, f"it ended with exit code {exit_code}"
        return Ending.FINISHED, ""

    def _answer(self, event: Any) -> None:
        for rule in self._stream.text:
            found = at(event, rule.path) if matches(event, rule.when) else MISSING
            if isinstance(found, str):
                if event.get("delta") is True:
                    self._add_text(found)
                else:
                    self.text = ""
                    self._add_text(found)

    def _add_text(self, text: str) -> None:
        self.text = (self.text + text)[-TEXT_LIMIT:]

    def _verdict(self, event: Any) -> None:
        """The last verdict counts: agents report errors that a retry of their own then mends."""
        if any(matches(event, rule.when) for rule in self._stream.success):
            self.succeeded = True
            self.errors.clear()
        for rule in self._stream.error:
            if matches(event, rule.when):
                self.succeeded = False
                self.errors = [_said(event, rule)]
                break
        for rule in self._stream.denied:
            found = at(event, rule.path) if matches(event, rule.when) else MISSING
            if found is not MISSING and found:
                items = found if isinstance(found, list) else [found]
                self.denied += [shorten(item) for item in items[: MOST_DENIED - len(self.denied)]]

    def _count(self, place: int, rule: UsageAt, event: Any) -> None:
        used = Usage(
            input_tokens=_sum(event, rule.input),
            output_tokens=_sum(event, rule.output),
            cost_usd=number(at(event, rule.cost)) if rule.cost else None,
        )
        if rule.mode == "total":
            self._total = used
            return
        key = at(event, rule.key) if rule.key else MISSING
        name = str(key) if key is not MISSING else f"#{len(self._each)}"
        self._each[place, name] = used


def _event(line: str) -> Any:
    """The JSON object in a line; None for whatever else an agent prints."""
    if not line.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _said(event: Any, rule: Match) -> str:
    found = at(event, rule.path) if rule.path else MISSING
    return shorten(event.get("type", "error") if found is MISSING else found)


def shorten(value: Any) -> str:
    """What an agent said, on one line of at most 300 characters."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return " ".join(text.split())[:300] or "no message"


def number(value: Any) -> float | None:
    """A count or a cost; None = not known, as for whatever nobody can have used (negative, not
    finite, beyond MOST, no number)."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MOST
    return float(value) if good else None


def _sum(event: Any, paths: tuple[str, ...]) -> int | None:
    found = [number(at(event, path)) for path in paths]
    known = [value for value in found if value is not None]
    return round(sum(known)) if known else None
