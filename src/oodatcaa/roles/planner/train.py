"""T003: train with QLoRA inside the limit, as long as the data and as small as they allow."""

from __future__ import annotations

from oodatcaa.domain.evidence import GateSpec
from oodatcaa.domain.plan import Problem, Risk, Size, Step, StepKind, Trouble
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.task import StoryKind
from oodatcaa.roles.planner import gates
from oodatcaa.roles.planner.choices import (
    alternatives,
    choices,
    decision_of,
    fallback,
    length_line,
)
from oodatcaa.roles.planner.common import quality_line
from oodatcaa.roles.planner.design import Checks, Design, Forced, Group, step
from oodatcaa.roles.planner.frameworks import loader
from oodatcaa.roles.planner.inputs import PlanInputs
from oodatcaa.roles.planner.parameters import (
    estimate_for,
    training_minutes,
    training_speed,
    training_tokens,
)
from oodatcaa.roles.planner.wording import count, data_line, model_line, setting, size


def design(inputs: PlanInputs, forced: Forced | None = None) -> Design:
    asked = inputs.params
    options = choices(inputs, forced)
    ways = alternatives(inputs, options)
    decision = decision_of(inputs, options, ways, forced)
    params = next(option.params for option in options if option.key == decision.chosen)
    steps = _steps(inputs, params)
    return Design(
        problem=_problem(inputs, params),
        constraints=(
            f"Parameters: {setting(params)} (from {inputs.params_from})",
            f"Sequence length: {length_line(inputs, asked)}",
            "Training runs on one machine never overlap unless their reserved memory fits",
        ),
        interfaces=(
            "spec.json into the training child; metrics.jsonl, checkpoints and result.json out",
            f"models/runs/<backend>/<run>/: run.json, adapters/ loadable by {loader(inputs)}",
            "A run is resumed from its last good checkpoint after a crash",
        ),
        alternatives=ways,
        decision=decision,
        fallback=fallback(inputs, options, decision.chosen),
        size=Size.M,
        steps=steps,
        groups=(
            Group("Estimate again and train", (1, 2), _trained_gates(inputs)),
            Group(
                "Training record",
                (3,),
                (*gates.files_of(steps, (3,)), _hashes()),
            ),
        ),
        checks=_checks(inputs, params, steps),
        risks=_risks(inputs, params),
        handoff=_handoff(inputs, params),
        backend=inputs.backend,
        params=params,
        inputs=_paths(inputs),
    )


def _problem(inputs: PlanInputs, params: QLoRA) -> Problem:
    estimate, source = estimate_for(inputs, params)
    return Problem(
        current_state=(
            model_line(inputs.objective.model, inputs.shape, inputs.model_error),
            f"Data: {data_line(inputs.dataset)}",
            f"Predicted peak: {size(estimate.total_bytes)} ({source})"
            if estimate
            else "Predicted peak: not available for these parameters; step 1 estimates it",
        ),
        impact="Without a finished run inside the limit there is nothing to evaluate or publish",
        statement=f"Train {inputs.objective.model} with {setting(params)}; peak memory at most "
        f"{inputs.objective.memory_limit_text}, every adapter tensor finite",
    )


def _steps(inputs: PlanInputs, params: QLoRA) -> tuple[Step, ...]:
    minutes, derivation = training_minutes(inputs, params)
    limit = inputs.objective.memory_limit_text
    records = ["training.md", "records/run.json", "records/lora_config.yaml"]
    if inputs.plotting:
        records.append("plots/run.png")
    return (
        step(
            1,
            StepKind.PROFILE_MEMORY,
            "Estimate memory for this data",
            f"Estimate again for batch {params.batch_size} x {params.max_seq_length} tokens "
            f"({length_line(inputs, inputs.params)}); refuse above {limit}.",
            (f"predicted peak <= {limit}",),
        ),
        step(
            2,
            StepKind.TRAIN,
            "Train with QLoRA",
            f"{params.iters} iterations = {params.optimizer_steps} optimizer steps, checkpoint "
            f"every {params.save_every}; {derivation}.",
            (f"peak memory <= {limit}", "every adapter tensor is finite", "run is finished"),
            minutes,
            critical=True,
        ),
        step(
            3,
            StepKind.DOCUMENT,
            "Write down the run",
            "Parameters, losses, memory predicted and measured, tokens/s, from run.json"
            + (
                "; with the loss-and-memory plot."
                if inputs.plotting
                else "; no plot: no plotting library is installed."
            ),
            ("the record in git is the run's own",),
            document="training",
            files=tuple(records),
        ),
    )


def _finite() -> GateSpec:
    return gates.metric(
        "Finite adapter",
        "nonfinite_tensors == 0",
        "No tensor of the adapter holds NaN or infinity; critical: such a run looks finished",
        critical=True,
    )


def _hashes() -> GateSpec:
    return gates.metric(
        "Record matches the run",
        "run_hash_mismatches == 0",
        "Hashes in docs/training/records/run.json are those of the files in the run store",
    )


def _trained_gates(inputs: PlanInputs) -> tuple[GateSpec, ...]:
    limit = gates.limit_bound(inputs.objective)
    return (
        _finite(),
        gates.metric(
            "Memory gate", limit, f"The measured peak is within {limit.text}", critical=True
        ),
    )


def _checks(inputs: PlanInputs, params: QLoRA, steps: tuple[Step, ...]) -> Checks:
    objective, board = inputs.objective, inputs.board
    speed, source = training_speed(inputs)
    estimate, from_ = estimate_for(inputs, params)
    return Checks(
        acceptance=(
            *gates.memory_gates(StoryKind.TRAIN, objective, board),
            _finite(),
            gates.metric(
                "Validation loss falls",
                "valid_loss_drop > 0",
                "The first validation loss minus the last, from the run's own metrics",
            ),
            _hashes(),
            gates.files("Training record", steps[2].deliverables),
        ),
        minutes=1,
        scope=(
            "The finished run: memory, finite tensors, losses, hashes",
            "The record, report and plot in git"
            if inputs.plotting
            else "The record and report in git",
        ),
        out_of_scope=(
            "Test loss: the test split is not touched before the evaluate story",
            "A second training run: gates read the artefacts, they do not train again",
        ),
        integration=(
            "The run's data hash is the data story's, its parameters are this plan's",
            f"adapters/ is in the form that {loader(inputs)} loads",
        ),
        regression=(quality_line(inputs), "Earlier runs in the run store are not touched"),
        benchmarks=(
            f"Predicted peak {size(estimate.total_bytes)} ({from_}) against the measured one"
            if estimate
            else "Predicted peak: not available at planning",
            f"Training speed expected {speed:,.0f} tokens/s ({source})"
            if speed
            else "Training speed: first measured by this run",
        ),
        troubleshooting=_troubles(),
    )


def _troubles() -> tuple[Trouble, ...]:
    return (
        Trouble(
            symptom="failed: memory_gate",
            cause="the estimate, MLX's own peak or the process tree went over the limit",
            remedy="nothing by hand: the refiner adapts; oodatcaa estimate shows the parts",
        ),
        Trouble(
            symptom="failed: not_finite",
            cause="a prompt as long as the sequence leaves no target token, or too high a rate",
            remedy="longer max_seq_length or a lower learning_rate in OBJECTIVE.md",
        ),
        Trouble(
            symptom="a few tokens/s on a CPU",
            cause="MLX's CPU build multiplies with a reference BLAS",
            remedy="oodatcaa doctor names what to install",
        ),
        Trouble(
            symptom="the run was interrupted",
            cause="the process or the machine died",
            remedy="oodatcaa run: the next attempt goes on from the last checkpoint",
        ),
    )


def _risks(inputs: PlanInputs, params: QLoRA) -> tuple[Risk, ...]:
    estimate, _ = estimate_for(inputs, params)
    share = estimate.total_bytes / inputs.ceiling_bytes if estimate else None
    minutes, derivation = training_minutes(inputs, params)
    budget = inputs.objective.budget.minutes
    longest = inputs.dataset.longest if inputs.dataset else None
    cut = bool(longest and longest > params.max_seq_length)
    return (
        Risk(
            risk="The run needs more memory than predicted"
            + (f" (predicted {share:.0%} of the ceiling)" if share is not None else ""),
            probability="medium"
            if share is None or 0.7 < share <= 1
            else "high"
            if share > 1
            else "low",
            impact="critical",
            mitigation="MLX's peak is checked every step, the process tree every 100 ms",
            contingency="the run is killed and kept as failed; the refiner goes down one rung",
        ),
        Risk(
            risk="The loss becomes NaN"
            + (
                f": examples up to {longest} tokens are cut at {params.max_seq_length}"
                if cut
                else ""
            ),
            probability="medium" if cut and params.mask_prompt else "low",
            impact="high",
            mitigation="loss and adapter tensors are checked for finite values",
            contingency="start over with a lower learning rate or a longer sequence",
        ),
        Risk(
            risk=f"Training takes longer than the budget of {budget} min: {derivation}",
            probability="high" if minutes > budget else "medium" if 2 * minutes > budget else "low",
            impact="medium",
            mitigation="progress with tokens/s is shown from the first iterations",
            contingency="fewer iterations or layers in OBJECTIVE.md; the checkpoint is kept",
        ),
        Risk(
            risk="The process dies in mid-training",
            probability="low",
            impact="medium",
            mitigation=f"a checkpoint every {params.save_every} iterations, written atomically",
            contingency="the next attempt resumes from the last good checkpoint",
        ),
        Risk(
            risk=f"{count(training_tokens(params, inputs.dataset))} tokens are too few to learn "
            "from",
            probability="medium",
            impact="medium",
            mitigation="validation loss is measured during the run",
            contingency="the evaluate story decides; more iterations in OBJECTIVE.md",
        ),
    )


def _handoff(inputs: PlanInputs, params: QLoRA) -> tuple[str, ...]:
    return (
        f"Train exactly: {setting(params)}",
        f"Critical: peak memory <= {inputs.objective.memory_limit_text} and finite tensors",
        f"Data: {data_line(inputs.dataset)}",
        f"Backend {inputs.backend}; parameters from {inputs.params_from}",
        "A failed run is kept in the run store; never written over",
    )


def _paths(inputs: PlanInputs) -> dict[str, str]:
    values = {"params_from": inputs.params_from}
    if inputs.dataset is not None:
        values |= {"data": inputs.dataset.path, "data_sha256": inputs.dataset.sha256}
    return values
