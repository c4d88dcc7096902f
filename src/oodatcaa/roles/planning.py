"""The planner's work: gather the facts through the ports, then decide without any I/O."""

from __future__ import annotations

from functools import partial

from oodatcaa.domain.auto_fit import with_dense
from oodatcaa.domain.board import Board
from oodatcaa.domain.memory import MemoryEstimate, ModelShape
from oodatcaa.domain.plan import AdaptationNote, Plan
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.task import Story, StoryKind
from oodatcaa.domain.training import BackendProbe, DatasetRecord, InferenceProbe, TrainSpec
from oodatcaa.errors import OodatcaaError
from oodatcaa.roles.agent_planner import plan_by_agent
from oodatcaa.roles.builder import records
from oodatcaa.roles.desk import Desk
from oodatcaa.roles.planner import (
    ParamOption,
    PlanInputs,
    adapted_plan,
    options_for,
    plan_story,
    planned_params,
)
from oodatcaa.roles.planner.imported import refuse_unapproved
from oodatcaa.roles.trials import try_backends


def make_plan(desk: Desk, board: Board, story: Story) -> Plan:
    """The story's next plan version, from facts probed now, or from an external planner for a
    story without a recipe. Raises AgentFailedError when that one comes to no valid plan."""
    if story.source is not None:
        refuse_unapproved(story)
        assert desk.draft_of is not None
        inputs = gather(desk, board, story, desk.objective.qlora, "mlx", "OBJECTIVE.md")
        return plan_story(inputs, desk.draft_of(story.source))
    agents = desk.agents
    if agents is not None and story.kind is StoryKind.CUSTOM and not agents.acting().builtin:
        return plan_by_agent(desk, agents, agents.acting(), board, story)
    params, backend, origin = inherited(desk, board, story)
    if story.kind is StoryKind.FRAMEWORK:
        params, origin = _with_dense(desk, params, origin)
    return plan_story(gather(desk, board, story, params, backend, origin))


def make_adapted_plan(
    desk: Desk,
    board: Board,
    story: Story,
    previous: Plan,
    *,
    params: QLoRA,
    backend: str,
    note: AdaptationNote,
    keeps: tuple[str, ...],
) -> Plan:
    origin = f"{story.id} plan v{story.plan_version + 1} (adapted)"
    inputs = gather(desk, board, story, params, backend, origin)
    plan = adapted_plan(previous, inputs, params=params, backend=backend, note=note, keeps=keeps)
    # Another way is taken, but what must be true in the end stays.
    return plan.evolve(goals=previous.goals) if previous.goals else plan


def inherited(desk: Desk, board: Board, story: Story) -> tuple[QLoRA, str, str]:
    """(parameters, backend, where they come from): the newest plan upstream decides.

    A training story's plan beats the framework story's: whatever had to be adapted on the way is
    what later stories go on with.
    """
    by_kind = {item.kind: item for item in board.stories if item.id != story.id}
    for kind in (StoryKind.TRAIN, StoryKind.FRAMEWORK):
        other = by_kind.get(kind)
        if other is None or other.plan_version == 0 or story.kind is StoryKind.FRAMEWORK:
            continue
        if story.kind is StoryKind.TRAIN and kind is StoryKind.TRAIN:
            continue
        plan = desk.plan_of(other.id)
        if plan is not None:
            return plan.params, plan.backend, f"{other.id} plan v{plan.version}"
    return desk.objective.qlora, desk.objective.backends[0], "OBJECTIVE.md"


def _with_dense(desk: Desk, params: QLoRA, origin: str) -> tuple[QLoRA, str]:
    """With `dense_weights` where the objective does not say and they fit well with a listed backend
    for which they are anything: before backends are tried and the memory is profiled, so that all
    of it is about what will be trained."""
    path = _model(desk)[2]
    if "dense_weights" in params.model_fields_set or path is None:
        return params, origin
    for backend in desk.objective.backends:
        held = with_dense(params, partial(_estimate, desk, backend, path), _ceiling(desk))
        if held != params:
            return held, f"{origin}, with dense_weights because they are estimated to fit"
    return params, origin


def _ceiling(desk: Desk) -> int:
    return min(desk.objective.memory_limit_bytes, desk.machine.memory_bytes)


def gather(
    desk: Desk, board: Board, story: Story, params: QLoRA, backend: str, origin: str
) -> PlanInputs:
    desk.say(f"{story.id} gathering facts for the plan")
    shape, model_error, place = _model(desk) if story.source is None else (None, None, None)
    by_kind = {item.kind: item.id for item in board.stories}
    dataset = desk.facts.get(by_kind.get(StoryKind.DATA, ""), records.DATASET, records.DatasetFacts)
    training = desk.facts.get(
        by_kind.get(StoryKind.TRAIN, ""), records.TRAINING, records.TrainingFacts
    )
    profile = desk.facts.get(
        by_kind.get(StoryKind.FRAMEWORK, ""), records.PROFILE, records.ProfileFacts
    )
    data = dataset.dataset if dataset else None
    trains = story.kind is StoryKind.TRAIN
    blocks = shape.num_layers if shape and _may_cache(desk, backend) else None
    planned = planned_params(params, data, blocks) if trains else params
    options = _options(desk, backend, place, shape, params, data) if trains else ()
    probes = _probes(desk, board, story) if story.source is None else ()
    choosing = story.kind is StoryKind.FRAMEWORK
    return PlanInputs(
        story=story,
        board=board,
        objective=desk.objective,
        now=desk.now(),
        author=desk.agent,
        version=story.plan_version + 1,
        quality_gates=desk.quality_gates,
        inventory=desk.inventory(),
        probes=probes,
        trials=try_backends(desk, place, params, probes) if choosing else (),
        machine=desk.machine,
        shape=shape,
        model_error=model_error,
        estimate=_estimate(desk, backend, place, planned),
        estimated_for=planned,
        options=options,
        inference=_inference(desk, by_kind.get(StoryKind.FRAMEWORK)),
        params=params,
        params_from=origin,
        backend=backend,
        dataset=data,
        profiled_speed=profile.probe_tokens_per_second if profile else None,
        run=desk.runs.read(training.run_id) if training else None,
        run_dir=training.run_dir if training else "",
        plotting=desk.can_plot,
        dependency_notes=tuple(
            f"{item.id} {item.title}: {item.status.value}"
            for item in board.stories
            if item.id in story.depends_on
        ),
    )


def _model(desk: Desk) -> tuple[ModelShape | None, str | None, str | None]:
    try:
        place = desk.models.place(desk.objective.model)
        return desk.models.shape(place.path), None, place.path
    except OodatcaaError as error:
        return None, str(error), None


def _probes(desk: Desk, board: Board, story: Story) -> tuple[BackendProbe, ...]:
    """Probed once per sprint by the framework story; asked again only when that was not yet."""
    framework = next((s.id for s in board.stories if s.kind is StoryKind.FRAMEWORK), "")
    known = desk.facts.get(framework, records.FRAMEWORKS, records.FrameworkFacts)
    if known is not None and story.kind is not StoryKind.FRAMEWORK:
        return known.probes
    return tuple(item.probe() for item in desk.backends.values())


def _estimate(
    desk: Desk, backend: str, model_path: str | None, params: QLoRA
) -> MemoryEstimate | None:
    if model_path is None:
        return None
    spec = TrainSpec(
        backend=backend,
        model=model_path,
        data_dir="-",
        params=params,
        memory_limit_bytes=desk.objective.memory_limit_bytes,
    )
    try:
        return desk.backends[backend].estimate(spec)
    except OodatcaaError as error:
        desk.say(f"no memory estimate: {error}")
        return None


def _options(
    desk: Desk,
    backend: str,
    model_path: str | None,
    shape: ModelShape | None,
    params: QLoRA,
    data: DatasetRecord | None,
) -> tuple[ParamOption, ...]:
    """What the plan of a training weighs, with estimates; nothing without a model to estimate."""
    if shape is None or _estimate(desk, backend, model_path, params) is None:
        return ()
    ceiling = _ceiling(desk)

    def estimate(one: QLoRA) -> MemoryEstimate | None:
        return _estimate(desk, backend, model_path, one)

    def fits(one: QLoRA) -> bool:
        found = estimate(one)
        return found is not None and found.total_bytes <= ceiling

    return tuple(
        option.evolve(estimate=estimate(option.params))
        for option in options_for(
            params, data, blocks=shape.num_layers, cached=_may_cache(desk, backend), fits=fits
        )
    )


def _may_cache(desk: Desk, backend: str) -> bool:
    """Whether a plan may choose `cache_frozen`: the objective does not say, and the backend can."""
    if "cache_frozen" in desk.objective.qlora.model_fields_set:
        return False
    return backend in desk.backends and desk.backends[backend].caches_frozen


def _inference(desk: Desk, story: str | None) -> InferenceProbe | None:
    facts = desk.facts.get(story or "", records.INFERENCE, records.InferenceFacts)
    return facts.probe if facts else None
