"""TEST_PLAN.md: how a story is verified, with the exact command or bound of every gate."""

from __future__ import annotations

from oodatcaa.domain.goal_gates import goal_gates, person_gates
from oodatcaa.domain.plan import Plan, Trouble
from oodatcaa.views.markdown import (
    bold,
    checklist,
    facts,
    page,
    prose,
    prose_bullets,
    section,
)
from oodatcaa.views.plan_parts import gate_section, gate_table, placeholders, plan_head

_HOW = (
    "The framework itself runs every gate below in a fresh worktree at the submitted commit, with "
    "the project's code imported from that worktree, and stores the result as evidence. Metrics "
    "are recomputed from the artefacts, never read from a report. A gate is passed, failed, "
    "crashed, not run or waived; only passed and waived ones let the work move on."
)


def test_plan(plan: Plan) -> str:
    """The test plan as Markdown. Links assume that the page lies beside AGENT_PLAN.md."""
    tests = plan.test_plan
    critical = [gate.id for gate in tests.acceptance if gate.critical]
    return page(
        f"Test plan for {plan.story}: {plan.title}",
        plan_head(plan, "Implementation", "AGENT_PLAN.md"),
        section(
            "Overview",
            _HOW,
            facts(
                [
                    ("Acceptance criteria", _criteria(len(tests.acceptance), critical)),
                    ("Quality gates", str(len(tests.quality_gates)) or None),
                ]
            ),
            section("In scope", prose_bullets(tests.scope), level=3),
            section("Out of scope", prose_bullets(tests.out_of_scope), level=3),
        ),
        _quality_gates(plan),
        _acceptance(plan),
        _goals(plan),
        section("Integration tests", prose_bullets(tests.integration)),
        section("Regression tests", prose_bullets(tests.regression)),
        section("Benchmarks", prose_bullets(tests.benchmarks)),
        section("Execution checklist", checklist(prose(item) for item in tests.checklist)),
        section("Troubleshooting", *(_trouble(item) for item in tests.troubleshooting)),
        _success(plan, critical),
    )


def _criteria(total: int, critical: list[str]) -> str:
    return f"{total}, of which critical: {', '.join(critical) or 'none'}"


def _quality_gates(plan: Plan) -> str:
    gates = plan.test_plan.quality_gates
    return section(
        "Quality gates",
        gate_table(gates),
        placeholders(gates),
        *(gate_section(gate, plan.memory_limit_bytes) for gate in gates),
    )


def _acceptance(plan: Plan) -> str:
    gates = plan.test_plan.acceptance
    return section(
        "Acceptance criteria",
        gate_table(gates),
        placeholders(gates),
        *(gate_section(gate, plan.memory_limit_bytes) for gate in gates),
    )


def _goals(plan: Plan) -> str:
    checked, asked = goal_gates(plan.goals), person_gates(plan.goals)
    return section(
        "Goal checks",
        "What must be true, exist and be connected in the end: checked at the submitted commit and "
        "again at the merged one."
        if checked or asked
        else "",
        gate_table((*checked, *asked)),
        *(gate_section(gate, plan.memory_limit_bytes) for gate in (*checked, *asked)),
    )


def _trouble(trouble: Trouble) -> str:
    return section(
        trouble.symptom,
        facts([("Cause", prose(trouble.cause)), ("Remedy", prose(trouble.remedy))]),
        level=3,
    )


def _success(plan: Plan, critical: list[str]) -> str:
    tests = plan.test_plan
    total = len(tests.acceptance)
    criteria = "The acceptance criterion is" if total == 1 else f"All {total} criteria are"
    lines = [f"{criteria} passed, or waived by a named person."]
    if tests.quality_gates:
        lines.append("Every quality gate passed, on the story's branch and again on the merge.")
    if critical:
        lines.append(
            f"{bold('Critical:')} {', '.join(critical)}. A failure sends the story to the refiner "
            "and keeps everything downstream blocked."
        )
    return section("Success means", "\n".join(f"- {line}" for line in lines))


test_plan.__test__ = False  # type: ignore[attr-defined]  # pytest must not collect the view
