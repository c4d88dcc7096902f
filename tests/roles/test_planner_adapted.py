"""adapted_plan: the next version after a failure keeps what is good and renumbers the rest."""

from __future__ import annotations

import pytest

from oodatcaa.domain.board import Board
from oodatcaa.domain.plan import AdaptationNote, Plan
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.task import StoryKind, Subtask, SubtaskKind, SubtaskStatus
from oodatcaa.domain.training import GB
from oodatcaa.errors import OodatcaaError
from oodatcaa.roles.planner import PlanInputs, adapted_plan, keepable, plan_story
from planner_facts import NOW, board, estimate, probe, rich

ASKED = QLoRA(batch_size=32, max_seq_length=2048)
LESS = ASKED.evolve(batch_size=4, grad_accumulation_steps=8)
NOTE = AdaptationNote(
    round=1,
    trigger="memory gate (before): 50.00 GB over 16.00 GB",
    rungs=("batch 32 → 4, accumulated 8 times",),
    before_bytes=50 * GB,
    after_bytes=9 * GB,
    limit_bytes=16 * GB,
)
DONE, CANCELLED = SubtaskStatus.DONE, SubtaskStatus.CANCELLED


def with_subtasks(plan: Plan, shown: Board, **status: SubtaskStatus) -> Board:
    """The board after `plan` was accepted; `status` by short id (`B01=DONE`), else cancelled."""
    for planned in plan.subtasks:
        shown = shown.with_task(
            Subtask(
                id=planned.id,
                story=plan.story,
                kind=planned.kind,
                title=planned.title,
                steps=planned.steps,
                status=status.get(planned.id.split("-")[1], CANCELLED),
                plan_version=plan.version,
                estimate_minutes=planned.estimate_minutes,
                status_since=NOW,
                created_at=NOW,
            )
        )
    return shown


def first_version(kind: StoryKind = StoryKind.FRAMEWORK) -> Plan:
    return plan_story(rich(kind, params=ASKED, estimate=estimate(50 * GB)))


def facts(shown: Board, kind: StoryKind = StoryKind.FRAMEWORK) -> PlanInputs:
    return rich(kind, board=shown, params=LESS, estimate=estimate(9 * GB))


def adapt(previous: Plan, inputs: PlanInputs, *keeps: str, params: QLoRA = LESS) -> Plan:
    return adapted_plan(
        previous, inputs, params=params, backend="mlx", note=NOTE, keeps=tuple(keeps)
    )


def names(plan: Plan) -> list[str]:
    return [subtask.id.split("-")[1] for subtask in plan.subtasks]


def test_kept_work_stays_and_the_rest_gets_new_numbers() -> None:
    previous = first_version()
    plan = adapt(previous, facts(with_subtasks(previous, board(), B01=DONE)), "T001-B01")
    assert (plan.version, plan.keeps, plan.adaptation) == (2, ("T001-B01",), NOTE)
    assert names(plan) == ["B04", "B05", "T02"]
    assert [subtask.steps for subtask in plan.subtasks] == [(5,), (6, 7, 8), ()]
    assert plan.subtasks[0].depends_on == ("T001-B01",)
    assert plan.subtasks[-1].kind is SubtaskKind.TEST
    assert [step.number for step in plan.steps] == list(range(1, 9))
    assert plan.exit_gates.keys() == {"T001-B04", "T001-B05"}
    assert plan.exit_gates["T001-B04"][0].id == "X-B04-1"
    assert plan.params == LESS
    assert "Ready to be claimed first: T001-B04" in plan.sprint_impact
    memory = next(a for a in plan.alternatives if a.key == "mlx").facts["memory"]
    assert memory.value.startswith("9.00 GB")


def test_a_start_over_keeps_nothing_and_reuses_no_number() -> None:
    previous = first_version()
    plan = adapt(previous, facts(with_subtasks(previous, board(), B01=DONE)))
    assert plan.keeps == ()
    assert names(plan) == ["B04", "B05", "B06", "T02"]
    assert plan.subtasks[0].depends_on == ()


def test_numbers_go_on_over_three_versions_even_without_the_board() -> None:
    first = first_version()
    second = adapt(first, facts(board()), "T001-B01")
    shown = with_subtasks(second, with_subtasks(first, board(), B01=DONE), B04=DONE)
    third = adapt(second, facts(shown), "T001-B01", "T001-B04")
    assert third.version == 3
    assert names(third) == ["B06", "T03"]
    assert third.subtasks[0].steps == (6, 7, 8)
    assert third.subtasks[0].depends_on == ("T001-B04",)


def test_a_new_plan_from_scratch_goes_on_behind_cancelled_subtasks() -> None:
    shown = with_subtasks(first_version(), board())
    plan = plan_story(rich(StoryKind.FRAMEWORK, board=shown, version=2))
    assert names(plan) == ["B04", "B05", "B06", "T02"]


def test_every_wrong_keep_is_named_at_once() -> None:
    previous = first_version()
    shown = with_subtasks(previous, board(), B01=DONE)
    with pytest.raises(OodatcaaError) as caught:
        adapt(previous, facts(shown), "T001-B01", "T001-B02", "T001-B09")
    assert caught.value.code == "plan.bad_keep"
    assert caught.value.details == (
        "T001-B02: is cancelled, only a done subtask can be kept",
        "T001-B09: no such subtask",
    )


def test_a_version_in_which_nothing_is_left_to_do_is_refused() -> None:
    previous = first_version()
    shown = with_subtasks(previous, board(), B01=DONE, B02=DONE, B03=DONE)
    with pytest.raises(OodatcaaError) as caught:
        adapt(previous, facts(shown), "T001-B01", "T001-B02", "T001-B03")
    assert caught.value.code == "plan.nothing_left"


def test_a_plan_of_another_story_is_refused() -> None:
    with pytest.raises(OodatcaaError) as caught:
        adapt(first_version(), facts(board(), StoryKind.TRAIN))
    assert caught.value.code == "plan.wrong_story"


def test_the_decision_of_the_refiner_is_written_down_not_taken_again() -> None:
    probes = (probe("mlx", importable=True), probe("hf", importable=True))
    inputs = facts(board()).evolve(probes=probes)
    plan = adapted_plan(first_version(), inputs, params=LESS, backend="hf", note=NOTE)
    assert plan.backend == plan.decision.chosen == "hf"
    assert plan.decision.rationale[0].startswith("Decided by the adaptation: round 1: memory gate")


def test_an_adapted_training_shows_what_it_replaces() -> None:
    previous = plan_story(rich(StoryKind.TRAIN))
    less = QLoRA(batch_size=1, grad_accumulation_steps=4)
    inputs = rich(StoryKind.TRAIN, params=less, estimate=estimate(2 * GB))
    plan = adapt(previous, inputs, params=less)
    assert [a.key for a in plan.alternatives] == ["adapted", "previous"]
    assert plan.decision.chosen == "adapted"
    assert plan.params == less.evolve(max_seq_length=385)
    assert "inherited" not in {factor.key for factor in plan.decision.factors}
    assert names(plan) == ["B03", "B04", "T02"]


def test_an_estimate_of_the_old_parameters_is_not_passed_off_as_one_of_the_new() -> None:
    old = rich(StoryKind.FRAMEWORK, params=ASKED, estimate=estimate(50 * GB))
    plan = adapt(first_version(), old)
    memory = next(a for a in plan.alternatives if a.key == "mlx").facts["memory"]
    assert memory.source == "not available"


@pytest.mark.parametrize("kind", list(StoryKind))
def test_every_kind_can_be_adapted_and_stays_deterministic(kind: StoryKind) -> None:
    previous = plan_story(rich(kind))
    inputs = rich(kind, board=with_subtasks(previous, board()))
    plans = {adapt(previous, inputs).model_dump_json() for _ in range(2)}
    assert len(plans) == 1


# what may be kept


def test_new_parameters_spoil_only_what_depends_on_them() -> None:
    previous = first_version()
    all_done = with_subtasks(previous, board(), B01=DONE, B02=DONE, B03=DONE)
    kept = keepable(previous, all_done, params=LESS, backend="mlx")
    assert kept == ("T001-B01", "T001-B03")
    plan = adapt(previous, facts(all_done), *kept)
    assert names(plan) == ["B04", "T02"]
    assert plan.subtasks[0].steps == (5,)
    assert plan.exit_gates["T001-B04"][-1].id == "G2"


def test_a_new_backend_spoils_everything_that_ran_on_the_old_one() -> None:
    previous = first_version()
    shown = with_subtasks(previous, board(), B01=DONE, B02=DONE)
    assert keepable(previous, shown, params=ASKED, backend="hf") == ()
    data = plan_story(rich(StoryKind.DATA))
    assert keepable(data, with_subtasks(data, board()), params=LESS, backend="hf") == ()


def test_a_training_with_other_parameters_is_done_again_wholly() -> None:
    previous = plan_story(rich(StoryKind.TRAIN))
    shown = with_subtasks(previous, board(), B01=DONE, B02=DONE)
    assert keepable(previous, shown, params=LESS, backend="mlx") == ()
    half = with_subtasks(previous, board(), B01=DONE)
    assert keepable(previous, half, params=previous.params, backend="mlx") == ("T003-B01",)


def test_when_all_is_done_and_nothing_changed_the_answer_is_a_start_over() -> None:
    previous = first_version()
    shown = with_subtasks(previous, board(), B01=DONE, B02=DONE, B03=DONE)
    assert keepable(previous, shown, params=ASKED, backend="mlx") == ()
