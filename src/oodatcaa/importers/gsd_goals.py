"""`must_haves` of a GSD plan: what has to be true, to exist and to be connected afterwards."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from oodatcaa.domain.goals import ArtifactCheck, Goals, KeyLink, Truth
from oodatcaa.importers.findings import Findings
from oodatcaa.importers.plan_text import FrontLines

ARTIFACT_KEYS = ("path", "provides", "contains", "min_lines", "exports")
Place = Callable[[object], int]
"""The line of an entry of must_haves."""
LINK_KEYS = ("from", "to", "via", "pattern")


def goals_of(value: Any, files: Iterable[str], findings: Findings, lines: FrontLines) -> Goals:
    """Goals from the front matter's `must_haves`; everything unreadable is a finding.

    `files` are the paths that the plan names: a link may start at the end of one of them.
    """

    def at(item: object) -> int:
        """The line of an entry, found by its first text."""
        first = next(iter(item.values()), "") if isinstance(item, dict) else item
        return lines.of("must_haves", first if isinstance(first, str) else "")

    if not isinstance(value, dict):
        if value:
            findings.warning("plan.field", at(""), "must_haves is no mapping", value)
        return Goals()
    value = dict(value)
    truths = texts_of(value.pop("truths", ()), "must_haves.truths", findings, at(""))
    artifacts = _artifacts(value.pop("artifacts", ()), findings, at)
    known = tuple(dict.fromkeys([*files, *(item.path for item in artifacts)]))
    links = _links(value.pop("key_links", ()), known, findings, at)
    if value:
        findings.info("plan.unmapped", at(""), "unknown must_haves", value)
    return Goals(
        truths=tuple(Truth(statement=text) for text in truths),
        artifacts=artifacts,
        key_links=links,
    )


def texts_of(value: Any, key: str, findings: Findings, line: int) -> tuple[str, ...]:
    """A list of texts; a single text is a list of one."""
    items = value if isinstance(value, list | tuple) else [value] if value else []
    odd = [item for item in items if not isinstance(item, str)]
    if odd:
        findings.warning("plan.field", line, f"{key} holds more than texts", odd)
    return tuple(item.strip() for item in items if isinstance(item, str) and item.strip())


def _entries(
    name: str, value: Any, keys: tuple[str, ...], findings: Findings, at: Place
) -> list[dict[str, Any]]:
    """Mappings with values under `keys`; a plain text stands for the first key."""
    found = []
    for item in value if isinstance(value, list) else [value] if value else []:
        if isinstance(item, str):
            item = {keys[0]: item}
        first = item.get(keys[0]) if isinstance(item, dict) else None
        if not isinstance(first, str) or not first.strip():
            findings.warning("plan.field", at(item), f"must_haves.{name}: unreadable", item)
            continue
        rest = {key: part for key, part in item.items() if key not in keys}
        if rest:
            findings.info("plan.unmapped", at(item), f"must_haves.{name}: more fields", rest)
        found.append({key: item[key] for key in keys if key in item})
    return found


def _text(item: dict[str, Any], key: str) -> str:
    value = item.get(key, "")
    return value.strip() if isinstance(value, str) else ""


def _artifacts(value: Any, findings: Findings, at: Place) -> tuple[ArtifactCheck, ...]:
    found = []
    for item in _entries("artifacts", value, ARTIFACT_KEYS, findings, at):
        path, _, told = _path_first(_text(item, "path"))
        if " " in path:
            what = "an artifact in words, which nothing decides"
            findings.info("plan.unmapped", at(path), what, path)
            continue
        item = {**item, "path": path, "provides": _text(item, "provides") or told}
        lines = _text(item, "min_lines")
        if lines and not (lines.isdecimal() and len(lines) < 7):
            what = f"min_lines of {item['path']} is no number"
            findings.warning("plan.field", at(path), what, lines)
            lines = ""
        found.append(
            ArtifactCheck(
                path=_text(item, "path"),
                provides=_text(item, "provides"),
                min_lines=int(lines or 0),
                contains=texts_of(item.get("contains"), "contains", findings, at(path)),
                exports=texts_of(item.get("exports"), "exports", findings, at(path)),
            )
        )
    return tuple(found)


def _path_first(text: str) -> tuple[str, str, str]:
    """`src/x.py - the thing` and `src/x.py (the thing)` as (path, separator, words)."""
    match = re.match(r"`?([^\s`]+?)`?:?(\s+(?:[-–—]+\s+)?|\s*$)(.*)$", text)
    if match is None or not re.search(r"[./]", match[1]):
        return text, "", ""
    return match[1], match[2], match[3].strip().strip("()")


def _links(
    value: Any, known: tuple[str, ...], findings: Findings, at: Place
) -> tuple[KeyLink, ...]:
    found = []
    for item in _entries("key_links", value, LINK_KEYS, findings, at):
        source, target = _text(item, "from"), _text(item, "to")
        if not target:
            what = "a key link in words, which nothing decides"
            findings.info("plan.unmapped", at(source), what, source)
            continue
        place = _place(source, known)
        if place != source:
            findings.info(
                "plan.link_source", at(source), f"the link from {source} starts in {place}"
            )
        found.append(
            KeyLink(
                source=place,
                target=target,
                via=_text(item, "via"),
                pattern=_text(item, "pattern"),
            )
        )
    return tuple(found)


def _place(source: str, known: tuple[str, ...]) -> str:
    """The one path of the plan that ends with `source`, or `source` as it is."""
    if source in known:
        return source
    ends = [path for path in known if path.endswith("/" + source.lstrip("./"))]
    return ends[0] if len(ends) == 1 else source
