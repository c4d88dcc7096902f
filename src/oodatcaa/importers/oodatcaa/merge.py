"""One version of every task out of the sides of a conflict and out of duplicates."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from oodatcaa.importers.findings import Findings, as_json, short
from oodatcaa.importers.oodatcaa.collect import Collected, Found
from oodatcaa.importers.oodatcaa.conflict import BASE
from oodatcaa.importers.oodatcaa.times import parse_moment

_NEVER = datetime.min.replace(tzinfo=UTC)


def merge(sides: list[tuple[str, Collected]], findings: Findings, now: datetime) -> list[Found]:
    """Every task once, in the file's order.

    Of several versions the undamaged one counts, then the one with the newest time that is not
    in the future, then the first. Every other version is reported with its content.
    """
    versions: dict[str, list[tuple[str, Found]]] = {}
    for name, collected in sides:
        for found in collected.tasks:
            key = found.id.upper() or f"(line {found.line}) {as_json(found.content)}"
            versions.setdefault(key, []).append((name, found))
    chosen = []
    for several in versions.values():
        best = _best(several, now)
        chosen.append(best[1])
        _report(several, best, len(sides), findings)
    return sorted(chosen, key=lambda found: found.line)


def _best(several: list[tuple[str, Found]], now: datetime) -> tuple[str, Found]:
    def rank(version: tuple[str, Found]) -> tuple[bool, bool, datetime]:
        name, found = version
        return name != BASE, not found.node.damaged, _newest(found.content, now)

    return max(several, key=rank)


def _newest(value: Any, now: datetime) -> datetime:
    if isinstance(value, dict):
        return max((_newest(item, now) for item in value.values()), default=_NEVER)
    if isinstance(value, list):
        return max((_newest(item, now) for item in value), default=_NEVER)
    moment = parse_moment(value) if isinstance(value, str) else None
    return moment.at if moment is not None and moment.at <= now else _NEVER


def _report(
    several: list[tuple[str, Found]],
    best: tuple[str, Found],
    sides: int,
    findings: Findings,
) -> None:
    name, kept = best
    label = kept.id or f"the task without an id in line {kept.line}"
    if sides > 1 and len({side for side, _ in several} - {BASE}) < 2:
        text = {
            BASE: "was deleted by both sides of the conflict; it is recovered",
        }.get(name, f"is only in the side {name!r} of the conflict; it is recovered")
        findings.warning("conflict.one_side", kept.line, f"{label} {text}")
    reported: set[tuple[int, str]] = set()
    for side, other in several:
        if (
            other is kept
            or side == BASE
            or (other.line == kept.line and other.content == kept.content)
        ):
            continue
        content = as_json(other.content)
        if (other.line, content) in reported:
            continue
        reported.add((other.line, content))
        differences = _differences(kept.content, other.content)
        if side != name and not (differences or other.inside != kept.inside):
            continue
        if side != name:
            findings.warning(
                "conflict.differs",
                other.line,
                f"{label}: the sides of the conflict differ in {differences or 'their place'}; "
                f"kept is {name!r}, line {kept.line}",
                content,
            )
        else:
            findings.error(
                "id.duplicate",
                other.line,
                f"{label} is also in line {kept.line}, "
                + (f"which is kept; they differ in {differences}" if differences else "the same"),
                content,
            )


def _differences(kept: dict[str, Any], other: dict[str, Any]) -> str:
    keys = [key for key in {**kept, **other} if kept.get(key) != other.get(key)]
    shown = [f"{key} ({short(kept.get(key), 30)} / {short(other.get(key), 30)})" for key in keys]
    return ", ".join(shown)
