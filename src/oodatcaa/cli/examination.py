"""How `doctor` shows what it found."""

from __future__ import annotations

from dataclasses import asdict

from oodatcaa.app.doctor import Diagnosis, Finding, Mended, Severity
from oodatcaa.cli.show import following, say

MARKS = {True: "ok", None: "note", False: "BAD"}


def as_data(found: Diagnosis, mended: tuple[Mended, ...]) -> dict[str, object]:
    """For --json: facts, findings and what was repaired."""
    return {
        "sound": found.sound,
        "facts": [asdict(fact) for fact in found.facts],
        "findings": [
            {**asdict(one), "severity": one.severity.value, "repairable": bool(one.action)}
            for one in found.findings
        ],
        "repaired": [asdict(one) for one in mended],
    }


def tell(found: Diagnosis, mended: tuple[Mended, ...]) -> None:
    for one in mended:
        say(f"{'repaired' if one.ok else 'NOT repaired'}: {one.code}: {one.text}")
    for fact in found.facts:
        say(f"{MARKS[fact.ok]:>5}  {fact.name:<16} {fact.text}")
    for finding in found.findings:
        _finding(finding)
    safe = sum(1 for one in found.findings if one.action)
    say()
    if not found.findings:
        say("no finding: everything agrees")
    else:
        bad = sum(1 for one in found.findings if one.severity is Severity.BAD)
        say(f"{len(found.findings)} findings, {bad} of them bad; repair would mend {safe}")
    following("oodatcaa doctor --repair" if safe else "oodatcaa status")


def _finding(one: Finding) -> None:
    mark = "BAD" if one.severity is Severity.BAD else "note"
    say(f"{mark:>5}  {one.code}: {one.meaning}")
    say(f"       in {one.place}")
    say(f"       repair: {one.repair}")
