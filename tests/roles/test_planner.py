"""plan_story: every kind of story, with many facts and with hardly any."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oodatcaa.domain.evidence import Bound, GateKind, GateSpec
from oodatcaa.domain.objective import METRICS
from oodatcaa.domain.plan import Plan, Size, StepKind
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.task import StoryKind, StoryStatus, SubtaskKind
from oodatcaa.domain.training import GB, BackendTrial
from oodatcaa.errors import OodatcaaError
from oodatcaa.roles.planner import PlanInputs, options_for, plan_story, planned_params
from oodatcaa.roles.planner.parameters import training_tokens
from planner_facts import (
    KINDS,
    NOW,
    board,
    dataset,
    estimate,
    machine,
    objective,
    poor,
    probe,
    rich,
    run,
    stories,
)

Facts = Callable[[StoryKind], PlanInputs]


def accepted(plan: Plan) -> tuple[str, ...]:
    return tuple(str(gate.bound) for gate in plan.test_plan.acceptance if gate.bound)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("facts", [poor, rich])
def test_every_kind_gets_a_coherent_plan(kind: StoryKind, facts: Facts) -> None:
    inputs = facts(kind)
    plan = plan_story(inputs)
    assert plan.kind is kind
    assert plan.branch == inputs.story.branch
    assert plan.created_at == NOW
    ids = [gate.id for gate in plan.test_plan.acceptance]
    assert ids == [f"AC{n}" for n in range(1, len(ids) + 1)]
    builds = [s for s in plan.subtasks if s.kind is SubtaskKind.BUILD]
    assert plan.exit_gates.keys() == {s.id for s in builds}
    for gate_id, subtask in ((g.id, s) for s in builds for g in plan.exit_gates[s.id]):
        assert gate_id.startswith((f"X-{subtask.id[5:]}-", "G"))
    assert plan.subtasks[-1].kind is SubtaskKind.TEST
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("facts", [poor, rich])
def test_the_same_inputs_give_the_same_plan(kind: StoryKind, facts: Facts) -> None:
    inputs = facts(kind)
    again = PlanInputs.model_validate_json(inputs.model_dump_json())
    assert plan_story(inputs).model_dump_json() == plan_story(again).model_dump_json()


@pytest.mark.parametrize(
    ("kind", "size", "dealt"),
    [
        (StoryKind.FRAMEWORK, Size.L, {"B01": (1, 2, 3, 4), "B02": (5,), "B03": (6, 7, 8)}),
        (StoryKind.DATA, Size.S, {"B01": (1, 2, 3)}),
        (StoryKind.TRAIN, Size.M, {"B01": (1, 2), "B02": (3,)}),
        (StoryKind.EVALUATE, Size.S, {"B01": (1, 2, 3)}),
        (StoryKind.PUBLISH, Size.S, {"B01": (1, 2)}),
    ],
)
def test_size_decides_how_the_steps_are_dealt(
    kind: StoryKind, size: Size, dealt: dict[str, tuple[int, ...]]
) -> None:
    plan = plan_story(rich(kind))
    builds = {s.id.split("-")[1]: s.steps for s in plan.subtasks if s.kind is SubtaskKind.BUILD}
    assert (plan.size, builds) == (size, dealt)
    chain = [subtask.depends_on for subtask in plan.subtasks]
    assert chain == [(), *((s.id,) for s in plan.subtasks[:-1])]


def test_the_framework_story_has_the_eight_criteria_and_six_risks() -> None:
    plan = plan_story(rich(StoryKind.FRAMEWORK))
    gates = {gate.id: gate for gate in plan.test_plan.acceptance}
    assert len(gates) == 8
    assert len(plan.risks) == 6
    predicted = gates["AC6"]
    assert str(predicted.bound) == "predicted_peak_memory <= 16GB"
    assert predicted.critical
    assert "probe_peak_memory <= 16GB" in accepted(plan)
    assert [step.number for step in plan.steps if step.critical] == [5]


def test_a_tighter_memory_bound_is_forecast_by_the_framework_story() -> None:
    asked = objective("peak_memory <= 8GB critical", "peak_memory <= 20GB")
    plan = plan_story(rich(StoryKind.FRAMEWORK, objective=asked))
    last = plan.test_plan.acceptance[-1]
    assert (str(last.bound), last.critical) == ("predicted_peak_memory <= 8GB", True)
    assert "predicted_peak_memory <= 20GB" not in accepted(plan)


bounds = st.builds(
    lambda metric, op, value, critical: Bound.parse(f"{metric} {op} {value:g}").evolve(
        critical=critical
    ),
    st.sampled_from(sorted(METRICS)),
    st.sampled_from(["<=", ">=", "<", ">", "=="]),
    st.sampled_from([0.1, 1.0, 5.0, 8e9, 16e9, 3e10]),
    st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(bounds, min_size=1, max_size=8), st.sets(st.sampled_from(KINDS)))
def test_every_bound_of_the_objective_is_decided_somewhere(
    asked: list[Bound], left_out: set[StoryKind]
) -> None:
    """Also when the sprint has no evaluate story; and a critical mark is never lost."""
    kinds = [kind for kind in KINDS if kind is StoryKind.TRAIN or kind not in left_out]
    shown = board().evolve(stories=tuple(s for s in stories() if s.kind in kinds))
    wish = objective().evolve(acceptance=tuple(asked))
    decided = [
        gate
        for kind in kinds
        for gate in plan_story(rich(kind, board=shown, objective=wish)).test_plan.acceptance
        if gate.bound is not None
    ]
    for bound in asked:
        homes = [
            g
            for g in decided
            if g.bound is not None
            and (g.bound.metric, g.bound.op, g.bound.value) == (bound.metric, bound.op, bound.value)
        ]
        assert homes, f"{bound} is decided nowhere"
        if bound.critical:
            assert all(g.critical and g.bound is not None and g.bound.critical for g in homes)


def test_without_a_test_loss_bound_the_adapter_must_still_beat_its_base() -> None:
    wish = objective("peak_memory <= 16GB critical")
    plan = plan_story(rich(StoryKind.EVALUATE, objective=wish))
    assert accepted(plan)[0] == "test_loss_drop > 0"
    asked = plan_story(rich(StoryKind.EVALUATE, objective=objective("test_loss <= 2")))
    assert accepted(asked) == ("test_loss <= 2", "evaluation_mismatch <= 0.001")


def test_training_is_decided_by_memory_and_finite_tensors() -> None:
    plan = plan_story(rich(StoryKind.TRAIN))
    critical = [str(gate.bound) for gate in plan.test_plan.acceptance if gate.critical]
    assert critical == ["peak_memory <= 16GB", "nonfinite_tensors == 0"]
    exits = [str(gate.bound) for gate in plan.exit_gates["T003-B01"]]
    assert exits == ["nonfinite_tensors == 0", "peak_memory <= 16GB"]


@pytest.mark.parametrize("kind", [k for k in KINDS if k is not StoryKind.CUSTOM])
def test_documents_are_promised_as_files_and_quality_gates_close_the_last_build(
    kind: StoryKind,
) -> None:
    plan = plan_story(rich(kind))
    promised = [path for gate in plan.test_plan.acceptance for path in gate.paths]
    assert sorted(promised) == sorted(plan.deliverables)
    exits = [path for gates in plan.exit_gates.values() for g in gates for path in g.paths]
    assert sorted(exits) == sorted(plan.deliverables)
    *earlier, last = plan.exit_gates.values()
    assert [gate.name for gate in last[-2:]] == ["Lint", "Tests"]
    assert [gate.id for gate in last[-2:]] == ["G1", "G2"]
    assert not [g for gates in earlier for g in gates if g.id.startswith("G")]
    assert [g.id for g in plan.test_plan.quality_gates] == ["G1", "G2"]


def test_gate_ids_that_a_person_chose_stay() -> None:
    mine = GateSpec(id="G7", name="Lint", kind=GateKind.COMMAND, command="true")
    plan = plan_story(rich(StoryKind.DATA, quality_gates=(mine,)))
    assert plan.test_plan.quality_gates == (mine,)


def test_no_plot_is_promised_where_nothing_can_draw_it() -> None:
    assert "docs/training/plots/run.png" in plan_story(rich(StoryKind.TRAIN)).deliverables
    plan = plan_story(rich(StoryKind.TRAIN, plotting=False))
    assert not [path for path in plan.deliverables if path.endswith(".png")]
    assert "no plot" in plan.steps[2].what


def test_custom_goals_are_run_line_by_line_and_nothing_is_invented() -> None:
    plan = plan_story(rich(StoryKind.CUSTOM))
    assert [(s.kind, s.command) for s in plan.steps] == [
        (StepKind.COMMAND, "echo hello"),
        (StepKind.COMMAND, "echo bye"),
    ]
    assert [gate.command for gate in plan.test_plan.acceptance] == ["echo hello", "echo bye"]
    empty = rich(StoryKind.CUSTOM)
    with pytest.raises(OodatcaaError) as caught:
        plan_story(empty.evolve(story=empty.story.evolve(goal="\n# later\n")))
    assert caught.value.code == "plan.no_command"


# facts decide


def test_an_installed_framework_beats_a_preferred_one_that_is_missing() -> None:
    wish = objective(backends=("hf", "mlx"))
    plan = plan_story(rich(StoryKind.FRAMEWORK, objective=wish))
    assert plan.decision.chosen == plan.backend == "mlx"
    assert "HF" in plan.fallback.action
    assert "to be installed first" in plan.fallback.action


def test_a_framework_that_is_importable_but_broken_is_not_chosen() -> None:
    probes = (
        probe("mlx", importable=True, problem="no backend for this device"),
        probe("hf", importable=True),
    )
    plan = plan_story(rich(StoryKind.FRAMEWORK, probes=probes))
    assert plan.backend == "hf"
    assert any("MLX" in line and "Not usable" in line for line in plan.decision.rationale)


@pytest.mark.parametrize("kind", [StoryKind.TRAIN, StoryKind.PUBLISH])
def test_an_adapter_is_loaded_by_what_belongs_to_its_backend(kind: StoryKind) -> None:
    facts = rich(kind)
    mlx = plan_story(facts).model_dump_json()
    assert "stock mlx-lm" in mlx.lower()
    assert "PEFT" not in mlx
    trained = facts.run.evolve(backend="hf") if facts.run else None
    hf = plan_story(facts.evolve(run=trained, backend="hf")).model_dump_json()
    assert "PEFT" in hf
    assert "stock mlx-lm" not in hf.lower()
    assert "mlx_lm.generate" not in hf


def test_totals_follow_the_facts() -> None:
    def total(**changes: object) -> float:
        return plan_story(rich(StoryKind.FRAMEWORK, **changes)).decision.totals["mlx"]

    base = total()
    assert total(estimate=estimate(15 * GB)) < base
    assert total(estimate=estimate(50 * GB)) < total(estimate=estimate(15 * GB))
    assert total(inference=None, model_error="gone") < base
    metal = (probe("mlx", importable=True, accelerator="metal"),)
    assert total(probes=metal) > base
    assert total(probes=(probe("mlx", importable=False),)) < base
    assert 0 <= base <= 1


def test_what_nobody_knows_is_left_out_and_said() -> None:
    plan = plan_story(poor(StoryKind.FRAMEWORK, model_error=None))
    keys = {factor.key for factor in plan.decision.factors}
    assert keys == {"preference"}
    assert "Measured tokens/s" in plan.decision.rationale[-1]
    cells = plan.alternatives[0].facts
    assert cells["importable"].source == cells["speed"].source == "not available"
    assert any("No listed backend is known" in line for line in plan.decision.rationale)


def test_nothing_is_claimed_of_a_framework_that_was_not_measured() -> None:
    plan = plan_story(rich(StoryKind.FRAMEWORK, probes=(probe("hf", importable=True),)))
    other = next(a for a in plan.alternatives if a.key == "hf")
    assert {other.facts[k].source for k in ("memory", "loads", "speed")} == {"not available"}
    sources = {fact.source for a in plan.alternatives for fact in a.facts.values()}
    known = ("probed", "measured", "estimated from", "not available", "given in OBJECTIVE.md")
    assert all(source.startswith(known) for source in sources)


def test_asking_for_more_than_fits_is_planned_openly_as_a_high_risk() -> None:
    inputs = rich(
        StoryKind.FRAMEWORK,
        estimate=estimate(50 * GB),
        params=QLoRA(batch_size=32, max_seq_length=2048),
    )
    plan = plan_story(inputs)
    assert plan.params == inputs.params
    assert plan.risks[0].probability == "high"
    assert "50.00 GB" in plan.risks[0].risk
    memory = next(a for a in plan.alternatives if a.key == "mlx").facts["memory"]
    assert "does not fit" in memory.value


def test_the_machine_may_be_smaller_than_the_limit() -> None:
    inputs = rich(
        StoryKind.FRAMEWORK, machine=machine(memory_bytes=8 * GB), estimate=estimate(10 * GB)
    )
    plan = plan_story(inputs)
    assert plan.risks[0].probability == "high"
    assert any("has only 8.00 GB" in line for line in plan.constraints)


# the training parameters


@pytest.mark.parametrize(
    ("asked", "longest", "planned"),
    [
        (512, 370, 385),  # 12 * 32 = 384, plus one
        (512, 384, 385),
        (512, 385, 417),
        (512, 480, 481),
        (512, 500, 512),  # 513 would be longer than asked
        (384, 384, 384),
        (256, 370, 256),  # cuts already: not made worse, said instead
        (512, None, 512),
        (512, 1, 33),
        (32, 1, 32),
    ],
)
def test_sequences_are_as_short_as_the_data_allow(
    asked: int, longest: int | None, planned: int
) -> None:
    data = dataset(longest) if longest else None
    inputs = rich(StoryKind.TRAIN, params=QLoRA(max_seq_length=asked), dataset=data)
    plan = plan_story(inputs)
    assert plan.params == planned_params(inputs.params, data)
    assert plan.params.max_seq_length == planned
    assert any(f"{asked}" in line and "tokens" in line for line in plan.constraints)
    told = " ".join(plan.constraints)
    assert ("will be cut" in told) == (longest is not None and longest > asked)


def test_frozen_blocks_are_cached_where_a_plan_sees_examples_again_and_the_backend_can() -> None:
    for iters, cached in ((449, False), (450, True)):
        asked = QLoRA(batch_size=4, iters=iters)  # of 900 examples
        (option, *_) = options_for(asked, dataset(), blocks=BLOCKS, cached=True)
        assert option.params == planned_params(asked, dataset(), BLOCKS)
        assert option.params.cache_frozen == cached
        (elsewhere, *_) = options_for(asked, dataset(), blocks=BLOCKS)
        assert not elsewhere.params.cache_frozen
        plan = plan_story(rich(StoryKind.TRAIN, params=asked, options=(option,)))
        assert ("kept on disk" in plan.problem.statement) == cached


def test_packed_rows_stay_as_long_as_asked_and_hold_several_examples() -> None:
    asked = QLoRA(max_seq_length=512, packing=True)
    plan = plan_story(rich(StoryKind.TRAIN, params=asked, dataset=dataset(100)))
    assert plan.params.max_seq_length == 512
    assert any("packed" in line or "filled" in line for line in plan.constraints)
    unpacked = planned_params(asked.evolve(packing=False), dataset(100))
    assert training_tokens(asked, dataset(100)) > 2 * training_tokens(unpacked, dataset(100))


@given(st.integers(32, 4096), st.integers(1, 5000))
def test_the_planned_length_never_cuts_what_fitted_and_never_grows(
    asked: int, longest: int
) -> None:
    """The width that mlx-lm's iterate_batches gives the longest example must not change."""
    planned = planned_params(QLoRA(max_seq_length=asked), dataset(longest)).max_seq_length
    padded = 1 + 32 * ((longest + 31) // 32)
    assert planned <= asked
    assert min(padded, planned) == min(padded, asked)


def test_an_estimate_for_longer_sequences_is_named_an_upper_bound() -> None:
    plan = plan_story(rich(StoryKind.TRAIN))
    fact = plan.alternatives[0].facts["memory"]
    assert "for 512 tokens: an upper bound" in fact.source
    exact = (
        plan_story(rich(StoryKind.TRAIN, estimated_for=planned_params(QLoRA(), dataset())))
        .alternatives[0]
        .facts["memory"]
    )
    assert "upper bound" not in exact.source
    unrelated = plan_story(rich(StoryKind.TRAIN, estimated_for=QLoRA(rank=64)))
    assert unrelated.alternatives[0].facts["memory"].source == "not available"


def weighed(*totals: int) -> PlanInputs:
    params, data = QLoRA(), dataset()
    options = tuple(
        option.evolve(estimate=estimate(total))
        for option, total in zip(options_for(params, data), totals, strict=True)
    )
    return rich(StoryKind.TRAIN, options=options, params=params, dataset=data)


def test_inherited_parameters_win_while_they_fit_and_lose_when_they_do_not() -> None:
    fits = plan_story(weighed(3 * GB, 2 * GB, 5 * GB))
    assert fits.decision.chosen == "inherited"
    over = plan_story(weighed(17 * GB, 9 * GB, 33 * GB))
    assert over.decision.chosen == "smaller"
    assert over.params.batch_size == 2
    assert over.params.effective_batch == 4
    assert over.params.optimizer_steps == 40
    assert any("not a candidate" in line for line in over.decision.rationale)
    nothing = plan_story(weighed(40 * GB, 30 * GB, 90 * GB))
    assert nothing.decision.chosen == "inherited"
    assert any("refuses" in line for line in nothing.decision.rationale)


BLOCKS = 30


def rows_and_blocks(params: QLoRA) -> int:
    """An estimate in made-up bytes: a block that is computed again keeps a tenth."""
    kept = params.trained_blocks(BLOCKS) - 0.9 * params.recomputed(params.trained_blocks(BLOCKS))
    return round(GB * (2 + params.batch_size * kept))


@pytest.mark.parametrize(
    ("limit", "batch", "recomputed"),
    [(34, 4, 0), (18, 2, 0), (9, 1, 2), (3, 1, 8), (2.5, 2, 0)],
)
def test_the_smaller_option_is_the_largest_batch_that_fits_then_the_fewest_blocks_again(
    limit: float, batch: int, recomputed: int
) -> None:
    asked = QLoRA(batch_size=4, num_layers=8)
    inherited, smaller, _ = options_for(
        asked, dataset(), blocks=BLOCKS, fits=lambda one: rows_and_blocks(one) <= limit * GB
    )
    taken = inherited.params if limit >= 34 else smaller.params
    assert (taken.batch_size, taken.recomputed(8)) == (batch, recomputed)
    assert taken.effective_batch == asked.effective_batch
    if recomputed:
        assert smaller.title.endswith(f"gradient checkpointing of {recomputed} of 8 blocks")


def test_minutes_come_from_a_measured_speed_where_there_is_one() -> None:
    plan = plan_story(rich(StoryKind.TRAIN, run=run()))
    train = plan.steps[1]
    assert train.estimate_minutes == 4  # 40 x 4 x 180 tokens / 120 per second = 240 s
    assert "120 tokens/s (measured in run 2026-01-30_12-00-00)" in train.what
    guessed = plan_story(rich(StoryKind.TRAIN)).steps[1]
    assert "planning figure" in guessed.what
    unknown = plan_story(rich(StoryKind.TRAIN, shape=None)).steps[1]
    assert "no speed is known" in unknown.what


# what comes from the board


def test_sprint_impact_is_derived_from_the_board() -> None:
    shown = board().with_task(stories()[0].evolve(status=StoryStatus.DONE))
    text = " ".join(plan_story(rich(StoryKind.DATA, board=shown)).sprint_impact)
    assert "Stories integrated so far: 1 of 6 (5% of 210 estimated minutes)" in text
    assert "T002 weighs 10% of the objective" in text
    assert "T002 unblocks T003; after them T004, T005" in text
    assert "Critical path: T002 → T003 → T004 → T005 (140 min); T002 is on it" in text
    assert "T002-B01" in text


def test_traceability_names_objective_sprint_and_neighbours() -> None:
    trace = plan_story(rich(StoryKind.TRAIN)).traceability
    assert (trace.sprint, trace.depends_on, trace.unblocks) == (4, ("T002",), ("T004",))
    assert trace.objective == "tune: Tune the demo model"


def test_a_cycle_in_the_board_does_not_hang_the_planner() -> None:
    first, second, *rest = stories()
    looped = (first.evolve(depends_on=("T002",)), second, *rest)
    plan = plan_story(rich(StoryKind.FRAMEWORK, board=board().evolve(stories=looped)))
    assert plan.sprint_impact


def trial(name: str, rate: float | None, needed: int = 2 * GB) -> BackendTrial:
    return BackendTrial(
        name=name,
        batch=4,
        length=128,
        tokens_per_second=rate,
        needed=estimate(needed),
        problem=None if rate else "the child crashed",
    )


BOTH = (probe("mlx", importable=True), probe("hf", importable=True))


@pytest.mark.parametrize(
    ("mlx", "hf", "chosen"),
    [
        (trial("mlx", 300.0), trial("hf", 600.0), "hf"),
        (trial("mlx", 600.0), trial("hf", 300.0), "mlx"),
        (trial("mlx", 600.0), trial("hf", 590.0), "mlx"),
        (trial("mlx", 300.0), trial("hf", 600.0, 20 * GB), "mlx"),
        (trial("mlx", 300.0), trial("hf", None), "mlx"),
        (trial("mlx", None), trial("hf", 60.0), "hf"),
        (trial("mlx", 300.0, 44 * GB), trial("hf", 600.0, 40 * GB), "hf"),
    ],
    ids=[
        "the faster one, though it is listed second",
        "the first listed is the faster one",
        "as good as equal: the preferred one",
        "the faster one does not fit",
        "it failed its trial",
        "only the slower one trains",
        "neither fits",
    ],
)
def test_the_faster_backend_that_fits_is_planned(
    mlx: BackendTrial, hf: BackendTrial, chosen: str
) -> None:
    wish = objective(backends=("mlx", "hf"))
    plan = plan_story(
        rich(StoryKind.FRAMEWORK, objective=wish, probes=BOTH, trials=(mlx, hf), inference=None)
    )
    assert plan.backend == chosen
    facts = {one.key: one.facts for one in plan.alternatives}
    for one in (mlx, hf):
        speed = facts[one.name]["speed"]
        assert speed.source == "measured"
        if one.tokens_per_second:
            rate = f"{one.tokens_per_second:.0f} tokens/s"
            assert speed.value == f"{rate} trained on batches of 4 x 128"
        else:
            assert facts[one.name]["loads"].value == "no: the child crashed"


def test_an_adapted_framework_plan_stays_with_the_backend_it_was_given() -> None:
    from oodatcaa.roles.planner import framework
    from oodatcaa.roles.planner.design import Forced

    inputs = rich(
        StoryKind.FRAMEWORK,
        objective=objective(backends=("mlx", "hf")),
        probes=BOTH,
        trials=(trial("mlx", 300.0), trial("hf", 600.0)),
    )
    forced = framework.design(inputs, Forced(inputs.params, "hf crashed here"))
    assert forced.decision.chosen == "mlx"
