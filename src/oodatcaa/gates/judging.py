"""Verdicts: pure functions from what was seen to what it means."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase

from oodatcaa.domain.base import Record
from oodatcaa.domain.evidence import Evidence, GateSpec, Verdict, Waiver
from oodatcaa.gates.ports import MetricValue

NEEDS_INTERVAL = frozenset({"test_loss_drop"})
"""Metrics that count only when their bootstrap interval excludes 0."""
_BYTES = re.compile(r"memory|bytes")
DETAIL_CHARS = 300


class Judgement(Record):
    verdict: Verdict
    detail: str


def judge_metric(gate: GateSpec, measured: MetricValue | None) -> Judgement:
    """Only a finite measured value can pass or fail; anything else is crashed."""
    bound = gate.bound
    if bound is None:
        return _crashed("the gate has no bound", "")
    if measured is None or measured.value is None:
        reason = measured.detail if measured else ""
        return _crashed(f"{bound.metric} could not be measured", reason)
    value, interval = measured.value, measured.interval
    if not math.isfinite(value):
        return _crashed(f"{bound.metric} is {value}, not a finite number", measured.detail)
    shown = f"{bound.metric} = {_show(bound.metric, value)}"
    if interval is not None:
        low, high = (_show(bound.metric, end) for end in interval)
        shown += f" (interval {low} to {high})"
    if bound.metric in NEEDS_INTERVAL:
        if interval is None or not all(math.isfinite(end) for end in interval):
            return _crashed(f"{shown}, but its bootstrap interval could not be computed", "")
        if interval[0] <= 0 <= interval[1]:
            return _failed(f"{shown}: the interval does not exclude 0", measured.detail)
    wanted = f"{bound.op} {bound.text}"
    if bound.holds(value):
        return Judgement(verdict=Verdict.PASSED, detail=one_line(f"{shown}, {wanted}"))
    return _failed(f"{shown}, wanted {wanted}", measured.detail)


def judge_files(gate: GateSpec, sizes: Mapping[str, int]) -> Judgement:
    """Every promised path is at the commit and not empty; a folder needs one such file in it."""
    if not gate.paths:
        return _crashed("the gate names no files", "")
    problems: list[str] = []
    for path in gate.paths:
        found = _matching(path, sizes)
        if not found:
            problems.append(f"{path} is missing")
        elif not any(sizes[name] for name in found):
            problems.append(f"{path} is empty")
    if problems:
        return _failed("; ".join(problems), "")
    return Judgement(verdict=Verdict.PASSED, detail=f"{len(gate.paths)} present at the commit")


def waive(evidence: Evidence, waivers: Sequence[Waiver], now: datetime) -> Evidence:
    """`evidence`, waived if it did not pass and a person's waiver of its gate is valid at `now`.

    What passed is never touched, and an expired waiver changes nothing but the detail line.
    """
    if evidence.acceptable:
        return evidence
    mine = [waiver for waiver in waivers if waiver.gate_id == evidence.gate.id]
    valid = [waiver for waiver in mine if waiver.at <= now < waiver.until]
    if valid:
        waiver = max(valid, key=lambda item: item.at)
        detail = (
            f"waived by {waiver.by} until {waiver.until:%Y-%m-%d %H:%M} UTC: {waiver.why} "
            f"(was {evidence.verdict.value}: {evidence.detail})"
        )
        return evidence.evolve(verdict=Verdict.WAIVED, waiver=waiver, detail=one_line(detail))
    if mine:
        last = max(mine, key=lambda item: item.until)
        note = f"{evidence.detail} (the waiver by {last.by} is not valid at {now:%Y-%m-%d %H:%M})"
        return evidence.evolve(detail=one_line(note))
    return evidence


def crashed(reason: str, said: str = "") -> Judgement:
    return _crashed(reason, said)


def failed(reason: str, said: str = "") -> Judgement:
    return _failed(reason, said)


def not_run(reason: str) -> Judgement:
    return Judgement(verdict=Verdict.NOT_RUN, detail=one_line(reason))


def passed(reason: str) -> Judgement:
    return Judgement(verdict=Verdict.PASSED, detail=one_line(reason))


def decided_by_a_person(gate: GateSpec, story: str) -> Judgement:
    """What no command decides is never passed here; a person's waiver lets it through."""
    return not_run(f"a person decides this: oodatcaa waive {story} {gate.id} --why … --hours …")


def with_note(judgement: Judgement, note: str) -> Judgement:
    return judgement.evolve(detail=one_line(f"{judgement.detail} [{note}]"))


def _failed(reason: str, said: str) -> Judgement:
    return Judgement(
        verdict=Verdict.FAILED, detail=one_line(f"{reason}: {said}" if said else reason)
    )


def _crashed(reason: str, said: str) -> Judgement:
    return Judgement(
        verdict=Verdict.CRASHED, detail=one_line(f"{reason}: {said}" if said else reason)
    )


def _matching(path: str, sizes: Mapping[str, int]) -> Iterable[str]:
    if any(sign in path for sign in "*?["):
        found = [name for name in sizes if fnmatchcase(name, path)]
        if found:
            return found
    if path in sizes:
        return [path]
    folder = path.rstrip("/") + "/"
    return [name for name in sizes if name.startswith(folder)]


def one_line(text: str, limit: int = DETAIL_CHARS) -> str:
    plain = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"


def _show(metric: str, value: float) -> str:
    if _BYTES.search(metric):
        return f"{value / 1e9:.3f} GB"
    return f"{value:.6g}"
