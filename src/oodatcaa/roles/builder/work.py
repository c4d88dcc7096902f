"""Run the steps of one build subtask in order; stop at the first failure; commit what was made."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable

from oodatcaa.domain.plan import Plan, Step, StepKind
from oodatcaa.domain.report import Action, Deliverable, Metric
from oodatcaa.domain.task import Artefact, Failure, Story, Subtask
from oodatcaa.errors import OodatcaaError
from oodatcaa.roles.builder import agent, check, data, evaluate, framework, publish, train
from oodatcaa.roles.builder.bench import Bench
from oodatcaa.roles.desk import BuildResult, Desk, StepOutcome, Workspace

EXECUTORS: dict[StepKind, Callable[[Bench], StepOutcome]] = {
    StepKind.PROBE_FRAMEWORKS: framework.probe_frameworks,
    StepKind.CHECK_INSTALLATION: framework.check_installation,
    StepKind.LOAD_MODEL: framework.load_model,
    StepKind.CHECK_INFERENCE: framework.check_inference,
    StepKind.PROFILE_MEMORY: framework.profile_memory,
    StepKind.QUALITY_GATES: framework.quality_gates,
    StepKind.BUILD_DATA: data.build_data,
    StepKind.VALIDATE_DATA: data.validate_data,
    StepKind.TRAIN: train.train,
    StepKind.EVALUATE: evaluate.evaluate,
    StepKind.COMPARE_GENERATIONS: evaluate.compare_generations,
    StepKind.MODEL_CARD: publish.model_card,
    StepKind.COMMAND: publish.command,
    StepKind.CHECK: check.check,
    StepKind.AGENT: agent.work,
}

DOCUMENTS: dict[str, Callable[[Bench], StepOutcome]] = {
    "installation": framework.document_installation,
    "dependencies": framework.document_dependencies,
    "data_card": data.document_data_card,
    "training": train.document_training,
    "evaluation": evaluate.document_evaluation,
    "publication": publish.document_publication,
}


def build(
    desk: Desk, plan: Plan, story: Story, subtask: Subtask, workspace: Workspace
) -> BuildResult:
    """Do the subtask's steps. What earlier attempts left in the worktree is built upon."""
    actions: list[Action] = []
    deliverables: list[Deliverable] = []
    artefacts: list[Artefact] = []
    metrics: list[Metric] = []
    failure: Failure | None = None
    for step in (plan.steps[number - 1] for number in subtask.steps):
        bench = Bench(desk, plan, story, subtask, step, workspace)
        desk.say(f"{subtask.id} step {step.number}/{len(plan.steps)}: {step.title}")
        began = time.monotonic()
        outcome = _execute(bench)
        failure = outcome.failure
        if outcome.files:
            workspace.commit(outcome.files, _message(story, step, outcome))
        actions.append(
            Action(
                title=f"{step.title} (step {step.number})",
                outcome="failed" if failure else "done",
                minutes=(time.monotonic() - began) / 60,
                estimate_minutes=step.estimate_minutes,
                facts=outcome.facts + ((failure.summary,) if failure else ()),
            )
        )
        for path in outcome.files:
            place = workspace.path / path
            size = place.stat().st_size if place.exists() else None
            deliverables.append(Deliverable(path=path, what=step.title, size_bytes=size))
        artefacts += outcome.artefacts
        metrics += outcome.metrics
        if failure is not None:
            break
    return BuildResult(
        commit=workspace.head(),
        actions=tuple(actions),
        deliverables=tuple(deliverables),
        artefacts=tuple(artefacts),
        metrics=tuple(metrics),
        failure=failure,
    )


def _message(story: Story, step: Step, outcome: StepOutcome) -> str:
    """The plan's own message where it has one; what failed is called so whatever the plan says."""
    about = f"{story.id} {step.title}"
    if step.message and outcome.failure is None:
        return f"{step.message}\n\n{about}"
    return f"[{_label(step.kind, outcome)}] {about}"


def _label(kind: StepKind, outcome: StepOutcome) -> str:
    if kind in (StepKind.AGENT, StepKind.COMMAND):
        # What a failed agent left is kept on the branch for the next attempt, and called so.
        return "wip" if outcome.failure else "impl"
    return "impl" if outcome.failure is None and outcome.artefacts else "docs"


def _execute(bench: Bench) -> StepOutcome:
    step = bench.step
    executor = (
        DOCUMENTS.get(step.document) if step.kind is StepKind.DOCUMENT else EXECUTORS.get(step.kind)
    )
    if executor is None:
        return _failed(bench, "plan", f"step {step.number}: nobody can do {step.kind.value}")
    try:
        return executor(bench)
    except OodatcaaError as error:
        lines = "; ".join(error.details[:3])
        return _failed(bench, error.code, f"{error.message}{': ' + lines if lines else ''}")
    except Exception as error:  # noqa: BLE001 - any crash of a step is a failure of the task
        log = bench.desk.scratch / f"crash-{bench.subtask.id}-{bench.subtask.attempt}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(traceback.format_exc(), encoding="utf-8")
        return _failed(bench, "crash", f"{type(error).__name__}: {error} (traceback: {log.name})")


def _failed(bench: Bench, kind: str, summary: str) -> StepOutcome:
    failure = Failure(kind=kind, task=bench.subtask.id, summary=summary, at=bench.desk.now())
    return StepOutcome(failure=failure)
