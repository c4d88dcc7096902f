"""A step that only checks: the framework runs its gates at the commit reached so far."""

from __future__ import annotations

from oodatcaa.domain.evidence import Evidence, GateSpec
from oodatcaa.domain.task import Failure
from oodatcaa.errors import OodatcaaError
from oodatcaa.roles.builder.bench import Bench
from oodatcaa.roles.desk import StepOutcome


def check(bench: Bench) -> StepOutcome:
    """A test written before its code must fail here, and be seen to. What an earlier attempt has
    shown to fail before its code was written is not asked again: the code is there by now."""
    facts: list[str] = []
    for gate in bench.step.checks:
        evidence = _seen_before(bench, gate) or _run(bench, gate)
        facts.append(f"{gate.id} {evidence.verdict.value}: {evidence.detail} ({evidence.id})")
        if not evidence.acceptable:
            failure = Failure(
                kind="gate",
                task=bench.subtask.id,
                summary=f"{gate.id} {gate.name}: {evidence.detail}",
                gates=(facts[-1],),
                evidence=(evidence.id,),
                at=bench.desk.now(),
            )
            return StepOutcome(facts=tuple(facts), failure=failure)
        if gate.expect == "failure":
            bench.desk.facts.put(bench.story.id, _name(gate), evidence)
    return StepOutcome(facts=tuple(facts))


def _name(gate: GateSpec) -> str:
    return f"failed-first-{gate.id}"


def _seen_before(bench: Bench, gate: GateSpec) -> Evidence | None:
    if gate.expect != "failure":
        return None
    found = bench.desk.facts.get(bench.story.id, _name(gate), Evidence)
    return found if found is not None and found.gate.command == gate.command else None


def _run(bench: Bench, gate: GateSpec) -> Evidence:
    if bench.desk.verify is None:
        raise OodatcaaError("check.nobody", "nothing here can run a check")
    return bench.desk.verify((gate,), bench.plan, bench.subtask, bench.workspace.head())[0]
