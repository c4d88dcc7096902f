"""The refiner's work: from a failure to the next plan version, or to a person."""

from __future__ import annotations

from oodatcaa.domain.adaptation import adapt_failure
from oodatcaa.domain.adapted import Adaptation, GiveUp
from oodatcaa.domain.board import Board
from oodatcaa.domain.memory import MemoryEstimate
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.rounds import rounds_allowed
from oodatcaa.domain.task import Story, StoryKind
from oodatcaa.domain.training import RunRecord, TrainSpec
from oodatcaa.errors import OodatcaaError
from oodatcaa.roles.builder.records import TRAINING, TrainingFacts
from oodatcaa.roles.custom_refiner import StartOver, refine_custom
from oodatcaa.roles.desk import Desk
from oodatcaa.roles.planner import keepable
from oodatcaa.roles.planning import make_adapted_plan


def refine(desk: Desk, board: Board, story: Story) -> Plan | StartOver | GiveUp:
    """Plan version n+1 for a story in `adapting`, a start-over, or why a person has to decide."""
    previous = desk.plan_of(story.id)
    if previous is None or story.failure is None:
        return GiveUp(reason=f"{story.id} has no plan or no recorded failure to adapt from")
    if story.kind is StoryKind.CUSTOM:
        return refine_custom(desk, board, story, previous, story.failure)
    decided = _decide(desk, board, story, previous)
    if isinstance(decided, GiveUp):
        return decided
    keeps = keepable(previous, board, params=decided.params, backend=decided.backend)
    return make_adapted_plan(
        desk,
        board,
        story,
        previous,
        params=decided.params,
        backend=decided.backend,
        note=decided.note,
        keeps=() if decided.start_over else keeps,
    )


def _decide(desk: Desk, board: Board, story: Story, previous: Plan) -> Adaptation | GiveUp:
    assert story.failure is not None
    model = desk.models.place(previous.model)
    shape = desk.models.shape(model.path)

    def estimate(params: QLoRA, backend: str) -> MemoryEstimate:
        spec = TrainSpec(
            backend=backend,
            model=model.path,
            data_dir="-",
            params=params,
            memory_limit_bytes=previous.memory_limit_bytes,
        )
        return desk.backends[backend].estimate(spec)

    usable = _usable(desk, previous)
    run = _last_run(desk, story)
    earlier = _earlier(desk, story)
    return adapt_failure(
        story.failure,
        round=story.adapt_round + 1,
        max_rounds=rounds_allowed(board, story),
        params=previous.params,
        backend=previous.backend,
        backends=usable,
        limit_bytes=min(previous.memory_limit_bytes, desk.machine.memory_bytes),
        estimate=estimate,
        data_longest=_longest(desk, model.path),
        bits=previous.params.quantize_bits or shape.bits,
        tried=tuple(plan.params for plan in earlier),
        notes=tuple(plan.adaptation for plan in earlier if plan.adaptation is not None),
        seconds_per_iteration=run.seconds_per_iteration if run else None,
        budget_seconds=desk.objective.budget.minutes * 60.0,
        total_layers=shape.num_layers,
        valid_losses=tuple(point.loss for point in run.valid_losses) if run else (),
    )


def _earlier(desk: Desk, story: Story) -> tuple[Plan, ...]:
    """The story's plans so far, oldest first."""
    return tuple(desk.plan_version(story.id, n) for n in range(1, story.plan_version + 1))


def _last_run(desk: Desk, story: Story) -> RunRecord | None:
    """The story's last training run; None when there is none."""
    facts = desk.facts.get(story.id, TRAINING, TrainingFacts)
    return desk.runs.read(facts.run_id) if facts else None


def _usable(desk: Desk, previous: Plan) -> tuple[str, ...]:
    """The objective's backends that can train on this machine, in the order of preference."""
    usable = []
    for name in desk.objective.backends:
        probe = desk.backends[name].probe()
        if name == previous.backend or probe.usable:
            usable.append(name)
    return tuple(usable)


def _longest(desk: Desk, model_path: str) -> int | None:
    try:
        return desk.datasets.longest(desk.objective.data, model_path)
    except OodatcaaError as error:
        desk.say(f"the data's longest example is not known: {error}")
        return None
