"""How one event looks in AGENT_LOG.md, and how it is read back.

    ## 2026-11-23T10:00:00Z · builder-A (builder) · T001-B01 · in_progress -> done

    All exit gates passed at 3f2a9c1.

    - G1 tests: passed
    - evidence: E12

    <!-- 12.0 transition role=builder attempt=2 us=5310 -->

The comment ends an entry: without it the entry is torn. Its first number is the transaction, the
second the event's place in it. Text that could be taken for structure is escaped by a backslash,
which Markdown does not show.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from datetime import UTC, datetime

from oodatcaa.domain.board import Event, EventKind
from oodatcaa.domain.ports import Logged
from oodatcaa.domain.task import Role

_MARKER = re.compile(
    r"^<!-- (?P<seq>\d+)\.(?P<index>\d+) (?P<kind>[a-z_]+)(?: role=(?P<role>[a-z]+))?"
    r"(?: attempt=(?P<attempt>-?\d+))?(?: us=(?P<us>\d+))? -->$",
    re.MULTILINE,
)
_AFTER = re.compile(r"^<!-- after (?P<seq>\d+)\.(?P<index>\d+) -->$", re.MULTILINE)
_HEADER = re.compile(r"^## (?P<moment>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ) · (?P<fields>.*)$")
_FRAME = re.compile(f"{_HEADER.pattern}|{_MARKER.pattern}", re.MULTILINE)
_EVIDENCE = "evidence: "
_ARROW = "->"


def render(logged: Logged) -> str:
    """One entry, ready to be appended."""
    event = logged.event
    actor = _word(event.actor) + (f" ({event.role.value})" if event.role else "")
    if event.before is None and event.after is None:
        what = event.kind.value
    else:
        what = f"{_word(event.before)} {_ARROW} {_word(event.after)}".strip(" ")
    moment = event.at.isoformat()[:19]  # to the second; it is in UTC
    header = f"## {moment}Z · {actor} · {_word(event.subject)} · {what}"
    parts = [header, "\n".join([_line(line) for line in event.text.split("\n")])]
    bullets = [_bullet(text) for text in event.details]
    bullets += [f"- {_EVIDENCE}{_word(item)}" for item in event.evidence]
    if bullets:
        parts.append("\n".join(bullets))
    parts.append(_marker(logged))
    return "\n\n".join(parts) + "\n\n"


def _marker(logged: Logged) -> str:
    event = logged.event
    marker = f"<!-- {logged.seq}.{logged.index} {event.kind.value}"
    if event.role is not None:
        marker += f" role={event.role.value}"
    if event.attempt is not None:
        marker += f" attempt={event.attempt}"
    if event.at.microsecond:
        marker += f" us={event.at.microsecond}"
    return marker + " -->"


def after(place: tuple[int, int]) -> str:
    """The comment in a new file's head: which entry the file before it ended with."""
    return f"<!-- after {place[0]}.{place[1]} -->"


def last_place(text: str) -> tuple[tuple[int, int], int] | None:
    """The last entry's seq and index, and where its comment ends in `text`."""
    found = None
    for pattern in (_AFTER, _MARKER):
        for match in pattern.finditer(text):
            if found is None or match.end() > found.end():
                found = match
    return ((int(found["seq"]), int(found["index"])), found.end()) if found else None


def parse(text: str) -> Iterator[Logged]:
    """The entries of a log, in order. Notes that people wrote between them are passed over."""
    start = 0
    for match in _MARKER.finditer(text):
        logged = _entry(text[start : match.start()], match)
        start = match.end()
        if logged is not None:
            yield logged


def extent(text: str) -> tuple[str, str, int]:
    """The moments of the first and the last entry that `parse` finds, and how many there are.

    Reads only headers and comments: a log that is full is archived while others wait.
    """
    moments: list[str] = []
    header: re.Match[str] | None = None
    for found in _FRAME.finditer(text):
        if found["moment"]:
            header = found
            continue
        if header is not None and len(header["fields"].split(" · ")) == 3:
            moments.append(header["moment"])
        header = None
    return (moments[0], moments[-1], len(moments)) if moments else ("", "", 0)


def _entry(block: str, marker: re.Match[str]) -> Logged | None:
    lines = block.split("\n")
    heads = [number for number, line in enumerate(lines) if _HEADER.match(line)]
    if not heads:
        return None
    header = _HEADER.match(lines[heads[-1]])
    assert header is not None
    fields = re.split(r" · ", header[2])
    if len(fields) != 3:
        return None
    actor = fields[0]
    if marker["role"]:
        actor = actor.removesuffix(f" ({marker['role']})")
    before, after_ = _arrow(fields[2])
    body = lines[heads[-1] + 2 :]
    while body and body[-1] == "":
        body.pop()
    text, details, evidence = _body(body)
    moment = datetime.strptime(header[1], "%Y-%m-%dT%H:%M:%SZ").replace(
        tzinfo=UTC, microsecond=int(marker["us"] or 0)
    )
    event = Event(
        kind=EventKind(marker["kind"]),
        at=moment,
        actor=_unword(actor),
        role=Role(marker["role"]) if marker["role"] else None,
        subject=_unword(fields[1]),
        before=before,
        after=after_,
        attempt=int(marker["attempt"]) if marker["attempt"] else None,
        text=text,
        details=tuple(details),
        evidence=tuple(evidence),
    )
    return Logged(seq=int(marker["seq"]), index=int(marker["index"]), event=event)


def _arrow(what: str) -> tuple[str | None, str | None]:
    if _ARROW not in what:
        return None, None
    before, _, after_ = what.partition(_ARROW)
    return _maybe(before.strip(" ")), _maybe(after_.strip(" "))


def _maybe(word: str) -> str | None:
    return _unword(word) if word else None


def _body(lines: list[str]) -> tuple[str, list[str], list[str]]:
    first = next((n for n, line in enumerate(lines) if line.startswith("- ")), len(lines))
    text = lines[: first - 1] if first < len(lines) else lines
    items: list[str] = []
    for line in lines[first:]:
        if line.startswith("- "):
            items.append(line[2:])
        else:
            items[-1] += "\n" + line[2:]
    details = [_unline(item) for item in items if not item.startswith(_EVIDENCE)]
    evidence = [_unword(item[len(_EVIDENCE) :]) for item in items if item.startswith(_EVIDENCE)]
    return "\n".join(_unline(line) for line in text), details, evidence


def _line(line: str) -> str:
    """A line of text that can be neither a header, a bullet, a comment nor an empty end."""
    return "\\" + line if line == "" or line[0] in "#-<\\" or line.isspace() else line


def _unline(line: str) -> str:
    return line[1:] if line.startswith("\\") else line


def _bullet(detail: str) -> str:
    first, *rest = detail.split("\n")
    if first.startswith((_EVIDENCE, "\\")):
        first = "\\" + first
    return "\n  ".join([f"- {first}", *rest])


_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "·": "\\.", ">": "\\>", " ": "\\_"}
_UNESCAPES = {escaped[1]: plain for plain, escaped in _ESCAPES.items()}


_SPECIAL = re.compile(r"[\\\n\r·>]|^ | $")


@functools.lru_cache(1024)  # the same few names and states in every entry
def _word(text: str | None) -> str:
    """One field of a header: no separator, arrow or line end in it, no blanks at its ends."""
    if text is None:
        return ""
    if text == "":
        return "\\0"
    if not _SPECIAL.search(text):
        return text
    plain = "".join(_ESCAPES[char] if char in "\\\n\r·>" else char for char in text)
    if plain[0] == " ":
        plain = "\\_" + plain[1:]
    if plain[-1] == " ":
        plain = plain[:-1] + "\\_"
    return plain


def _unword(text: str) -> str:
    if text == "\\0":
        return ""
    return re.sub(r"\\(.)", lambda match: _UNESCAPES.get(match[1], match[1]), text)
