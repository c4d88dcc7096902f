"""Whether evidence that was gathered once more says the same; pure."""

from __future__ import annotations

import math

from oodatcaa.domain.base import NonEmpty, Record
from oodatcaa.domain.evidence import Evidence, Verdict

TOLERANCE = 1e-6
"""Relative, for recomputed metrics: sums in another order differ in their last digits."""


class Reproduction(Record):
    """What came of running one piece of evidence again. `again` is None when it could not run."""

    evidence: NonEmpty
    gate: NonEmpty
    name: NonEmpty
    commit: str
    before: Verdict
    again: Verdict | None
    reproduces: bool
    notes: tuple[str, ...] = ()


def compare(first: Evidence, again: Evidence, *, intact: bool) -> Reproduction:
    """The same exit code, measured value, findings and verdict; output may differ (times do).

    A waived gate is compared by what it did, for nobody waives a second run. What a baseline gate
    is compared with may have moved on; then its own findings decide. `intact` says whether the
    first output is still what was hashed.
    """
    problems: list[str] = []
    notes: list[str] = []
    if not intact:
        problems.append("the stored output is not what was seen: its hash differs")
    if first.exit_code != again.exit_code:
        problems.append(f"exit code {first.exit_code}, now {again.exit_code}")
    if not _close(first.measured, again.measured):
        problems.append(f"measured {first.measured}, now {again.measured}")
    if first.findings != again.findings:
        problems.append(f"{first.findings} findings, now {again.findings}")
    moved = first.baseline is not None and first.baseline != again.baseline
    if first.verdict is not Verdict.WAIVED and first.verdict is not again.verdict:
        line = f"{first.verdict.value}, now {again.verdict.value} ({again.detail})"
        (notes if moved and not problems else problems).append(line)
    if moved:
        notes.append("the target branch moved on, so the baseline is another one")
    if first.tools != again.tools:
        notes.append("other tool versions: " + _changes(first.tools, again.tools))
    if first.environment != again.environment:
        notes.append("another cached environment")
    if first.output_sha256 and first.output_sha256 == again.output_sha256:
        notes.append("same output")
    return Reproduction(
        evidence=first.id,
        gate=first.gate.id,
        name=first.gate.name,
        commit=first.commit,
        before=first.verdict,
        again=again.verdict,
        reproduces=not problems,
        notes=(*problems, *notes),
    )


def impossible(first: Evidence, why: str) -> Reproduction:
    return Reproduction(
        evidence=first.id,
        gate=first.gate.id,
        name=first.gate.name,
        commit=first.commit,
        before=first.verdict,
        again=None,
        reproduces=False,
        notes=(why,),
    )


def _close(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=TOLERANCE) or (math.isnan(one) and math.isnan(other))


def _changes(old: dict[str, str], new: dict[str, str]) -> str:
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return ", ".join(f"{name} {old.get(name, '-')} -> {new.get(name, '-')}" for name in names)
