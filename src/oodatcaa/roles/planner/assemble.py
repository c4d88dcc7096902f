"""The front door: one story's facts become one validated plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from oodatcaa.domain.draft import DraftStory
from oodatcaa.domain.evidence import GateSpec
from oodatcaa.domain.plan import AdaptationNote, Plan, SubtaskPlan, TestPlan
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.task import StoryKind, SubtaskKind
from oodatcaa.errors import OodatcaaError
from oodatcaa.roles.planner import (
    common,
    custom,
    data,
    evaluate,
    framework,
    gates,
    imported,
    publish,
    subtasks,
    train,
)
from oodatcaa.roles.planner.design import Design, Forced, Group
from oodatcaa.roles.planner.inputs import PlanInputs

Designer = Callable[[PlanInputs, Forced | None], Design]

DESIGNERS: dict[StoryKind, Designer] = {
    StoryKind.FRAMEWORK: framework.design,
    StoryKind.DATA: data.design,
    StoryKind.TRAIN: train.design,
    StoryKind.EVALUATE: evaluate.design,
    StoryKind.PUBLISH: publish.design,
    StoryKind.CUSTOM: custom.design,
}


def plan_story(inputs: PlanInputs, draft: DraftStory | None = None) -> Plan:
    """The story's plan, version `inputs.version`, from the facts alone.

    The same inputs give the same plan, byte by byte. Subtask ids go on from those the board
    already has for the story. Raises OodatcaaError (`plan.no_command`) for a custom story
    without a command.
    """
    if inputs.story.source is not None:
        if draft is None:
            raise OodatcaaError("import.no_draft", f"the draft of {inputs.story.id} is missing")
        made = imported.design(inputs, draft)
    else:
        made = DESIGNERS[inputs.story.kind](inputs, None)
    ids = subtasks.known_ids(inputs, None)
    plan = _assemble(inputs, made, made.groups, ids=ids)
    return plan.evolve(goals=draft.goals) if draft is not None else plan


def adapted_plan(
    previous: Plan,
    inputs: PlanInputs,
    *,
    params: QLoRA,
    backend: str,
    note: AdaptationNote,
    keeps: tuple[str, ...] = (),
) -> Plan:
    """Version `previous.version + 1` with these parameters and backend, and why.

    `keeps` names done subtasks whose steps are not done again; the remaining steps go to new
    subtasks whose numbers continue. A start-over keeps nothing. `inputs.estimate` counts only
    when it is for `params`: `inputs.params` or `inputs.estimated_for` equals it.

    Raises OodatcaaError: `plan.bad_keep` listing every wrong one, `plan.nothing_left` when every
    step would be kept, `plan.wrong_story`.
    """
    if previous.story != inputs.story.id:
        raise OodatcaaError(
            "plan.wrong_story",
            f"a plan of {previous.story} can not be adapted for {inputs.story.id}",
            hint=f"oodatcaa show {inputs.story.id}",
        )
    # An estimate that was made for the parameters of before must not pass as one for the new.
    estimated_for = inputs.estimated_for or (inputs.params if inputs.estimate else None)
    changed = inputs.evolve(
        params=params,
        backend=backend,
        version=previous.version + 1,
        estimated_for=estimated_for,
    )
    forced = Forced(previous=previous.params, reason=f"round {note.round}: {note.trigger}")
    design = DESIGNERS[inputs.story.kind](changed, forced)
    groups = subtasks.remaining(design, subtasks.kept_steps(changed, previous, keeps))
    if not groups:
        raise OodatcaaError(
            "plan.nothing_left",
            f"every step of {previous.story} would be kept: version {previous.version + 1} "
            "would change nothing",
            hint="keep fewer subtasks, or none for a start-over",
        )
    ids = subtasks.known_ids(changed, previous)
    return _assemble(changed, design, groups, ids=ids, note=note, keeps=keeps)


def _assemble(
    inputs: PlanInputs,
    design: Design,
    groups: Sequence[Group],
    *,
    ids: Sequence[str],
    note: AdaptationNote | None = None,
    keeps: tuple[str, ...] = (),
) -> Plan:
    story, objective = inputs.story, inputs.objective
    quality = gates.quality(inputs.quality_gates)
    acceptance = gates.numbered("AC", design.checks.acceptance)
    dealt = subtasks.deal(inputs, design, groups, ids=ids, keeps=keeps)
    minutes = sum(subtask.estimate_minutes for subtask in dealt)
    first = [s.id for s in dealt if not set(s.depends_on) - set(keeps)]
    return Plan(
        story=story.id,
        kind=story.kind,
        version=inputs.version,
        title=story.title,
        created_at=inputs.now,
        author=inputs.author,
        goal=story.goal or design.problem.statement,
        adaptation=note,
        base_commit=inputs.inventory.commit,
        branch=story.branch,
        traceability=common.traceability(inputs),
        inventory=inputs.inventory,
        problem=design.problem,
        constraints=(*common.constraints(inputs), *design.constraints),
        interfaces=design.interfaces,
        definition_of_done=common.definition_of_done(inputs, acceptance),
        alternatives=design.alternatives,
        decision=design.decision,
        fallback=design.fallback,
        steps=design.steps,
        size=design.size,
        subtasks=dealt,
        keeps=keeps,
        exit_gates=_exit_gates(dealt, groups, quality),
        test_plan=_test_plan(design, acceptance, quality),
        deliverables=subtasks.deliverables(design.steps)
        or (f"what the commands change, committed on {story.branch}",),
        risks=design.risks,
        sprint_impact=common.sprint_impact(inputs, minutes, first),
        handoff=(*design.handoff, *_route(dealt, keeps, story.branch)),
        backend=design.backend,
        model=objective.model,
        params=design.params,
        memory_limit_bytes=objective.memory_limit_bytes,
        inputs=design.inputs,
    )


def _exit_gates(
    dealt: Sequence[SubtaskPlan], groups: Sequence[Group], quality: Sequence[GateSpec]
) -> dict[str, tuple[GateSpec, ...]]:
    """X-B01-1, …; the project's quality gates decide the last build subtask as well."""
    builds = [subtask for subtask in dealt if subtask.kind is SubtaskKind.BUILD]
    result = {}
    for subtask, group in zip(builds, groups, strict=True):
        own = gates.numbered(f"X-{subtask.id.split('-')[1]}-", group.gates)
        result[subtask.id] = (*own, *quality) if subtask is builds[-1] else own
    return result


def _test_plan(
    design: Design, acceptance: tuple[GateSpec, ...], quality: tuple[GateSpec, ...]
) -> TestPlan:
    checks = design.checks
    return TestPlan(
        scope=checks.scope,
        out_of_scope=checks.out_of_scope,
        quality_gates=quality,
        acceptance=acceptance,
        integration=checks.integration,
        regression=checks.regression,
        benchmarks=checks.benchmarks,
        checklist=common.checklist(acceptance, quality),
        troubleshooting=checks.troubleshooting,
    )


def _route(dealt: Sequence[SubtaskPlan], keeps: Sequence[str], branch: str) -> tuple[str, ...]:
    chain = " → ".join(f"{s.id} ({s.estimate_minutes} min)" for s in dealt)
    lines = [f"Branch {branch}: {chain}"]
    if keeps:
        lines.append(f"Kept from earlier versions, not done again: {', '.join(keeps)}")
    return tuple(lines)
