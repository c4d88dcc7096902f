"""A step that an external agent does in the story's worktree. The gates decide about it later."""

from __future__ import annotations

from oodatcaa.domain.agents import AgentDefinition, Ending, Turn
from oodatcaa.domain.report import Metric
from oodatcaa.domain.task import Failure
from oodatcaa.roles.builder.bench import Bench
from oodatcaa.roles.desk import StepOutcome
from oodatcaa.roles.prompts import build_prompt

KINDS = {
    Ending.ERROR: "agent_error",
    Ending.DENIED: "denied",
    Ending.TIMEOUT: "timeout",
    Ending.SILENT: "timeout",
    Ending.MEMORY: "memory",
    Ending.BUDGET: "budget",
    Ending.MISSING: "agent_missing",
    Ending.STOPPED: "stopped",
}
"""Ending -> kind of failure, for adaptation."""


def work(bench: Bench) -> StepOutcome:
    """Call the agent, in its old session when it mends what it made before.

    Everything that it leaves in the worktree is committed, also when it failed. Refused
    permissions are a failure only when nothing was changed; otherwise the gates decide.
    """
    agents = bench.desk.agents
    definition = agents.external(bench.step.agent) if agents is not None else None
    if agents is None or definition is None:
        return StepOutcome(failure=_nobody(bench))
    mends = bench.plan.adaptation is not None or bench.subtask.attempt > 1
    session = agents.session_of(definition, bench.step.number) if mends else ""
    before = bench.workspace.head()
    turn = agents.call(
        definition,
        build_prompt(definition, bench.plan, bench.story, bench.subtask, bench.step),
        cwd=bench.workspace.path,
        step=bench.step.number,
        session=session,
    )
    changed = bench.workspace.changed() or bench.workspace.head() != before
    ok = turn.ok or (turn.ending is Ending.DENIED and changed)
    return StepOutcome(
        facts=_facts(definition, turn, session),
        # Stopped may mean that the lease is lost: then the worktree is somebody else's already.
        files=() if turn.ending is Ending.STOPPED else (".",),
        metrics=(
            Metric(
                name=f"{definition.name}, step {bench.step.number}",
                value=turn.usage.describe(),
                source=f"reported by {definition.runner}",
            ),
        ),
        failure=None if ok else failure_of(bench, definition, turn),
    )


def _facts(definition: AgentDefinition, turn: Turn, session: str) -> tuple[str, ...]:
    facts = [f"{definition.name} {turn.ending.value} in {turn.seconds:.1f} s"]
    if session:
        facts.append("went on in its earlier session")
    facts += [f"was refused: {line}" for line in turn.denied[:10]]
    return tuple(facts)


def failure_of(bench: Bench, definition: AgentDefinition, turn: Turn) -> Failure:
    return Failure(
        kind=KINDS[turn.ending],
        task=bench.subtask.id,
        summary=f"{definition.name}: {turn.detail or turn.ending.value}{_advice(definition, turn)}",
        gates=turn.denied,
        layer=turn.circle or None,
        at=bench.desk.now(),
    )


def _advice(definition: AgentDefinition, turn: Turn) -> str:
    if turn.ending is not Ending.DENIED:
        return ""
    return f"; allow it in {definition.source or 'its definition'} (tools), or change the plan"


def _nobody(bench: Bench) -> Failure:
    wanted = bench.step.agent
    who = f"agent {wanted!r}" if wanted else "an external builder"
    return Failure(
        kind="agent_missing",
        task=bench.subtask.id,
        summary=f"step {bench.step.number} needs {who}: write agents/{wanted or 'builder-…'}.md "
        "with a runner",
        at=bench.desk.now(),
    )
