"""T004: base against adapter on the test split, recomputed by the framework."""

from __future__ import annotations

from oodatcaa.domain.evidence import Bound, GateSpec
from oodatcaa.domain.plan import (
    Alternative,
    Fact,
    Factor,
    Fallback,
    Problem,
    Risk,
    Size,
    Step,
    StepKind,
    Trouble,
)
from oodatcaa.domain.task import StoryKind
from oodatcaa.domain.training import RunRecord
from oodatcaa.roles.planner import gates
from oodatcaa.roles.planner.common import quality_line
from oodatcaa.roles.planner.design import Checks, Design, Forced, Group, step
from oodatcaa.roles.planner.inputs import PlanInputs
from oodatcaa.roles.planner.parameters import evaluation_minutes, training_minutes
from oodatcaa.roles.planner.scoring import decide, with_pros_and_cons
from oodatcaa.roles.planner.wording import data_line, plural

RESAMPLES = 2000
TOLERANCE = "0.001"
"""nats/token between the committed record and a recomputation on the same machine."""

FACTORS = (
    Factor(
        key="interval",
        title="Says how sure it is",
        weight=4,
        why="a drop that may be chance is not a result",
    ),
    Factor(
        key="unseen",
        title="Data unseen by training",
        weight=4,
        why="the test split is never used for selection",
    ),
    Factor(key="paired", title="Paired by example", weight=2, why="removes the spread of examples"),
    Factor(key="passes", title="Model passes", weight=1, why="forward passes cost the time here"),
)

_GIVEN = "given by the method"


def design(inputs: PlanInputs, forced: Forced | None = None) -> Design:
    bounds, examples = _bounds(inputs), _examples(inputs)
    ways = tuple(with_pros_and_cons(way, FACTORS) for way in _alternatives(inputs))
    decision = decide(
        ways,
        FACTORS,
        candidates=[way.key for way in ways],
        because=(f"Adaptation: {forced.reason}",) if forced else (),
        trade_offs=(
            "Loss on held-out answers is measured, not whether generated code runs",
            f"{plural(examples, 'example')} of the test split are evaluated"
            if examples
            else "The number of test examples is not known yet",
        ),
    )
    steps = _steps(inputs)
    return Design(
        problem=_problem(inputs, bounds),
        constraints=(
            "The test split is read here for the first time and selects nothing",
            f"Memory limit {inputs.objective.memory_limit_text} holds for evaluation too",
        ),
        interfaces=(
            "A child process per evaluation: request.json in, per-example losses out",
            f"docs/training/records/evaluation.json: compared with a recomputation within "
            f"{TOLERANCE} nats/token",
        ),
        alternatives=ways,
        decision=decision,
        fallback=_fallback(inputs),
        size=Size.S,
        steps=steps,
        groups=(
            Group("Evaluation of base and adapter", (1, 2, 3), gates.files_of(steps, (1, 2, 3))),
        ),
        checks=_checks(inputs, bounds, steps),
        risks=_risks(inputs),
        handoff=(
            f"Under test: {run_line(inputs.run)}",
            "Bounds: " + ", ".join(str(bound) for bound in bounds),
            "The record must hold the evaluator's hash: another evaluator is another result",
            f"Side-by-side prompt: {_prompt(inputs)}",
        ),
        backend=inputs.backend,
        params=inputs.params,
        inputs=run_paths(inputs),
    )


def _bounds(inputs: PlanInputs) -> tuple[Bound, ...]:
    """The objective's bounds on test losses; without any, the adapter must beat its base."""
    asked = gates.asked_of(StoryKind.EVALUATE, inputs.objective, inputs.board)
    if any(bound.metric.startswith("test_loss") for bound in asked):
        return asked
    return (Bound.parse("test_loss_drop > 0"), *asked)


def _examples(inputs: PlanInputs) -> int | None:
    if inputs.dataset is None or "test" not in inputs.dataset.splits:
        return inputs.objective.eval_examples
    there = inputs.dataset.splits["test"].examples
    return min(there, inputs.objective.eval_examples or there)


def _alternatives(inputs: PlanInputs) -> tuple[Alternative, ...]:
    minutes = evaluation_minutes(inputs)[0]
    yes, no = 1.0, 0.0
    return (
        _way(
            "bootstrap",
            "Paired bootstrap on test",
            (f"95 % interval from {RESAMPLES} resamples", yes),
            ("yes: test split", yes),
            ("yes", yes),
            ("2 passes; resampling needs none", yes),
            minutes,
        ),
        _way(
            "point",
            "Point estimate on test",
            ("no interval", no),
            ("yes: test split", yes),
            ("no", no),
            ("2 passes", yes),
            minutes,
        ),
        _way(
            "unpaired",
            "Two independent bootstraps",
            ("wider: spread of examples counts twice", 0.5),
            ("yes: test split", yes),
            ("no", no),
            ("2 passes; resampling needs none", yes),
            minutes,
        ),
        _way(
            "valid",
            "Validation loss of the run",
            ("no interval", no),
            ("no: watched during training", no),
            ("no", no),
            ("0 passes: already measured", yes),
            1,
        ),
    )


def _way(
    key: str,
    title: str,
    interval: tuple[str, float],
    unseen: tuple[str, float],
    paired: tuple[str, float],
    passes: tuple[str, float],
    minutes: int,
) -> Alternative:
    cells = {"interval": interval, "unseen": unseen, "paired": paired, "passes": passes}
    facts = {k: Fact(value=v, source=_GIVEN, score=score) for k, (v, score) in cells.items()}
    return Alternative(key=key, title=title, facts=facts, effort_minutes=minutes)


def _run_name(inputs: PlanInputs) -> str:
    return f"run {inputs.run.run_id}" if inputs.run else "the train story's run"


def run_line(run: RunRecord | None) -> str:
    """What is known of the run; unmeasured values are not mentioned."""
    if run is None:
        return "no run record yet"
    parts = [f"run {run.run_id} {run.status.value}, {run.iterations_done} iterations"]
    if run.valid_losses:
        first, last = run.valid_losses[0].loss, run.valid_losses[-1].loss
        parts.append(f"valid loss {first:.3f} → {last:.3f}")
    if run.peak_memory_bytes:
        parts.append(f"peak {run.peak_memory_bytes / 1e9:.2f} GB")
    if run.tokens_per_second:
        parts.append(f"{run.tokens_per_second:.0f} tokens/s")
    return ", ".join(parts)


def run_paths(inputs: PlanInputs) -> dict[str, str]:
    values: dict[str, str] = {}
    if inputs.run is not None:
        values["run"] = inputs.run.run_id
        if inputs.run.adapter_sha256:
            values["adapter_sha256"] = inputs.run.adapter_sha256
    if inputs.run_dir:
        values["run_dir"] = inputs.run_dir
    if inputs.dataset is not None:
        values |= {"data": inputs.dataset.path, "data_sha256": inputs.dataset.sha256}
    return values


def _prompt(inputs: PlanInputs) -> str:
    text = " ".join(inputs.objective.prompt.split())
    return repr(text if len(text) <= 60 else text[:57] + "...") if text else "none in OBJECTIVE.md"


def _problem(inputs: PlanInputs, bounds: tuple[Bound, ...]) -> Problem:
    return Problem(
        current_state=(
            run_line(inputs.run)[:1].upper() + run_line(inputs.run)[1:],
            f"Data: {data_line(inputs.dataset)}",
            "Test loss of base and adapter: not measured",
        ),
        impact="Training and validation loss fall on an overfitted adapter too; only unseen "
        "examples decide whether it may be published",
        statement=f"Is {_run_name(inputs)} better than {inputs.objective.model} on the test "
        f"split: {', '.join(str(bound) for bound in bounds)}?",
    )


def _steps(inputs: PlanInputs) -> tuple[Step, ...]:
    minutes, derivation = evaluation_minutes(inputs)
    return (
        step(
            1,
            StepKind.EVALUATE,
            "Evaluate base and adapter on the test split",
            f"Loss per example for both in a child process: {derivation}; then {RESAMPLES} "
            "paired resamples.",
            ("both losses are finite", "the interval is recorded"),
            minutes,
            critical=True,
        ),
        step(
            2,
            StepKind.COMPARE_GENERATIONS,
            "Answer one held-out prompt side by side",
            f"Greedy answers of base and adapter; prompt: {_prompt(inputs)}.",
            ("both answers are recorded, or none when no prompt is named",),
        ),
        step(
            3,
            StepKind.DOCUMENT,
            "Write the evaluation",
            "Losses, drop, interval, examples, hashes; from the record.",
            ("the report's numbers are the record's",),
            document="evaluation",
            files=("evaluation.md", "records/evaluation.json"),
        ),
    )


def _acceptance(
    inputs: PlanInputs, bounds: tuple[Bound, ...], steps: tuple[Step, ...]
) -> tuple[GateSpec, ...]:
    minutes = evaluation_minutes(inputs)[0]
    # Recomputed on a machine that may be busy: four times the estimate, ten minutes at least.
    timeout = max(600, 4 * 60 * minutes)
    asked = {(b.metric, b.op, b.value) for b in inputs.objective.acceptance}
    own = [bound for bound in bounds if (bound.metric, bound.op, bound.value) not in asked]
    acceptance = [
        gates.metric(
            gates.NAMES[bound.metric],
            bound,
            "OBJECTIVE.md names no test loss: the adapter must at least beat its base; the "
            "paired bootstrap interval must exclude 0",
            timeout=timeout,
        )
        for bound in own
    ]
    acceptance += gates.asked_gates([b for b in bounds if b not in own], timeout=timeout)
    acceptance += [
        gates.metric(
            "Record equals recomputation",
            f"evaluation_mismatch <= {TOLERANCE}",
            f"The committed losses differ from recomputed ones by at most {TOLERANCE} nats/token",
            timeout=timeout,
        ),
        gates.files("Evaluation report", steps[2].deliverables),
    ]
    return tuple(acceptance)


def _checks(inputs: PlanInputs, bounds: tuple[Bound, ...], steps: tuple[Step, ...]) -> Checks:
    return Checks(
        acceptance=_acceptance(inputs, bounds, steps),
        minutes=evaluation_minutes(inputs)[0],
        scope=(
            f"{plural(_examples(inputs) or 0, 'test example')}: loss of base and adapter"
            if _examples(inputs)
            else "All test examples: loss of base and adapter",
            "The committed record against a recomputation",
        ),
        out_of_scope=(
            "Running generated code; other benchmarks",
            "Choosing between runs or checkpoints by test loss",
        ),
        integration=("The adapter's and the data's hashes are those of the train story",),
        regression=(quality_line(inputs),),
        benchmarks=(f"Under test: {run_line(inputs.run)}",),
        troubleshooting=(
            Trouble(
                symptom="the drop is positive but AC1 fails",
                cause="the bootstrap interval includes 0",
                remedy="more test examples (eval_examples) or a longer training",
            ),
            Trouble(
                symptom="evaluation_mismatch is too large",
                cause="record and artefacts are of different runs, data or evaluator",
                remedy="compare the hashes in records/evaluation.json with records/run.json",
            ),
            Trouble(
                symptom="the evaluation is killed by the memory gate",
                cause="long examples over a large vocabulary",
                remedy="oodatcaa doctor shows the limit; fewer tokens per example",
            ),
        ),
    )


def _fallback(inputs: PlanInputs) -> Fallback:
    return Fallback(
        trigger="the loss does not fall as asked, or the interval includes 0",
        action="The refiner starts the training over with other parameters; costs are estimates",
        costs=(
            ("decide and write the next plan version", 2),
            ("train again", training_minutes(inputs, inputs.params)[0]),
            ("evaluate again", evaluation_minutes(inputs)[0]),
        ),
    )


def _risks(inputs: PlanInputs) -> tuple[Risk, ...]:
    examples = _examples(inputs)
    few = examples is None or examples < 30
    return (
        Risk(
            risk="The adapter overfitted: test loss does not fall",
            probability="medium",
            impact="high",
            mitigation="the drop is measured on files that training never saw",
            contingency="start over with fewer iterations, lower rank or more data",
        ),
        Risk(
            risk="The interval includes 0"
            + (f" with {plural(examples, 'example')}" if examples else ""),
            probability="medium" if few else "low",
            impact="high",
            mitigation="paired resampling over all evaluated examples",
            contingency="raise eval_examples; the criterion is not lowered",
        ),
        Risk(
            risk="The record is of another run or other data",
            probability="low",
            impact="critical",
            mitigation="everything is named by hash; the framework recomputes from artefacts",
            contingency="evaluate again; the old record stays as evidence",
        ),
        Risk(
            risk="Evaluation needs more memory than the limit",
            probability="low",
            impact="medium",
            mitigation="a child process under the same watcher as training",
            contingency="one example at a time; shorter max_seq_length",
        ),
    )
