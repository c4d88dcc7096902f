"""T003: train with QLoRA inside the limit, as long as the data and as small as they allow."""

from __future__ import annotations

from oodatcaa.domain.evidence import GateSpec
from oodatcaa.domain.plan import (
    Alternative,
    Fact,
    Factor,
    Fallback,
    PlanDecision,
    Problem,
    Risk,
    Size,
    Step,
    StepKind,
    Trouble,
)
from oodatcaa.domain.task import StoryKind
from oodatcaa.domain.training import QLoRA
from oodatcaa.roles.planner import gates
from oodatcaa.roles.planner.common import quality_line
from oodatcaa.roles.planner.design import Checks, Design, Forced, Group, step
from oodatcaa.roles.planner.inputs import ParamOption, PlanInputs
from oodatcaa.roles.planner.parameters import (
    estimate_for,
    fitted_length,
    options_for,
    planned_params,
    training_minutes,
    training_speed,
    training_tokens,
)
from oodatcaa.roles.planner.scoring import NOT_AVAILABLE, decide, memory_fact, with_pros_and_cons
from oodatcaa.roles.planner.wording import count, data_line, model_line, setting, size

FACTORS = (
    Factor(
        key="memory",
        title="Memory",
        weight=4,
        why="the limit is hard; what does not fit can not be chosen",
    ),
    Factor(
        key="inherited",
        title="Profiled before",
        weight=4,
        why="only the inherited parameters passed the memory profile",
    ),
    Factor(
        key="examples",
        title="Examples seen",
        weight=2,
        why="more examples lower the loss further, relative to the option that sees most",
    ),
    Factor(
        key="minutes",
        title="Training time",
        weight=1,
        why="relative to the shortest option",
    ),
)


def design(inputs: PlanInputs, forced: Forced | None = None) -> Design:
    asked = inputs.params
    options = _options(inputs, forced)
    ways = _alternatives(inputs, options)
    decision = _decision(inputs, options, ways, forced)
    params = next(option.params for option in options if option.key == decision.chosen)
    steps = _steps(inputs, params)
    return Design(
        problem=_problem(inputs, params),
        constraints=(
            f"Parameters: {setting(params)} (from {inputs.params_from})",
            f"Sequence length: {_length_line(inputs, asked)}",
            "Training runs on one machine never overlap unless their reserved memory fits",
        ),
        interfaces=(
            "spec.json into the training child; metrics.jsonl, checkpoints and result.json out",
            "models/runs/<backend>/<run>/: run.json, adapters/ loadable by stock mlx-lm",
            "A run is resumed from its last good checkpoint after a crash",
        ),
        alternatives=ways,
        decision=decision,
        fallback=_fallback(inputs, options, decision.chosen),
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


def _options(inputs: PlanInputs, forced: Forced | None) -> tuple[ParamOption, ...]:
    if forced is None:
        return inputs.options or options_for(inputs.params, inputs.dataset)
    adapted = planned_params(inputs.params, inputs.dataset)
    options: tuple[ParamOption, ...] = (
        ParamOption(key="adapted", title="As adapted", params=adapted),
    )
    if forced.previous != adapted:
        before = ParamOption(
            key="previous", title="As in the version before", params=forced.previous
        )
        options += (before,)
    return options


def _alternatives(inputs: PlanInputs, options: tuple[ParamOption, ...]) -> tuple[Alternative, ...]:
    most = max(_examples(option.params) for option in options)
    minutes = {option.key: training_minutes(inputs, option.params) for option in options}
    shortest = min(value for value, _ in minutes.values())
    known = training_speed(inputs)[0] is not None
    ways = []
    for option in options:
        estimate, source = option.estimate, ""
        if estimate is None:
            estimate, source = estimate_for(inputs, option.params)
        else:
            source = f"estimated from {estimate.method}"
        seen, (took, derivation) = _examples(option.params), minutes[option.key]
        facts = {
            "setting": Fact(value=setting(option.params), source="given"),
            "memory": memory_fact(
                estimate.total_bytes if estimate else None, inputs.ceiling_bytes, source
            ),
            "inherited": _profiled(inputs, option),
            "examples": Fact(
                value=f"{seen:,} ({count(training_tokens(option.params, inputs.dataset))} tokens)",
                source="derived from iterations x batch",
                score=round(seen / most, 4),
            ),
            "minutes": Fact(
                value=f"{took} min",
                source=f"estimated from {derivation}",
                score=round(shortest / took, 4),
            )
            if known
            else NOT_AVAILABLE,
        }
        way = Alternative(key=option.key, title=option.title, facts=facts, effort_minutes=took)
        ways.append(with_pros_and_cons(way, FACTORS))
    return tuple(ways)


def _examples(params: QLoRA) -> int:
    return params.iters * params.batch_size


def _profiled(inputs: PlanInputs, option: ParamOption) -> Fact:
    same = option.params.evolve(max_seq_length=inputs.params.max_seq_length) == inputs.params
    value = f"{'yes' if same else 'no'}: parameters come from {inputs.params_from}"
    return Fact(value=value, source="given by the plan they come from", score=1.0 if same else 0.0)


def _decision(
    inputs: PlanInputs,
    options: tuple[ParamOption, ...],
    ways: tuple[Alternative, ...],
    forced: Forced | None,
) -> PlanDecision:
    first = options[0].key
    fitting = [way.key for way in ways if way.facts["memory"].score != 0.0]
    known = {way.key for way in ways if way.facts["memory"].score}
    because = [f"Sequence length {_length_line(inputs, inputs.params)}"]
    candidates = [first]
    if forced:
        because.append(f"Decided by the adaptation: {forced.reason}")
    elif first in fitting:
        # Without an estimate an option may not replace parameters that were profiled.
        candidates = [first, *(key for key in fitting if key in known and key != first)]
    elif known:
        because.append("The inherited parameters do not fit with this data: not a candidate")
        candidates = sorted(known, key=[way.key for way in ways].index)
    else:
        because.append("No option is known to fit: step 1 refuses and the refiner adapts")
    return decide(
        ways,
        FACTORS,
        candidates=candidates,
        forced=first if forced else None,
        because=because,
        trade_offs=(
            f"{inputs.params.iters} iterations show that the path works and the loss falls; "
            "they do not exhaust the data",
        ),
    )


def _length_line(inputs: PlanInputs, asked: QLoRA) -> str:
    longest = inputs.dataset.longest if inputs.dataset else None
    return fitted_length(asked.max_seq_length, longest)[1]


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
            f"({_length_line(inputs, inputs.params)}); refuse above {limit}.",
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
            "adapters/ is in the form that stock mlx-lm loads",
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


def _fallback(inputs: PlanInputs, options: tuple[ParamOption, ...], chosen: str) -> Fallback:
    params = next(option.params for option in options if option.key == chosen)
    smaller = next(
        (
            o
            for o in (*options, *options_for(params, inputs.dataset))
            if o.key == "smaller" and o.key != chosen
        ),
        None,
    )
    trigger = "the memory gate stops the run, or its loss is not finite"
    if smaller is None:
        return Fallback(
            trigger=trigger,
            action="The refiner's next rung below the chosen parameters",
            costs=(
                ("decide and write the next plan version", 2),
                ("train again", training_minutes(inputs, params)[0]),
            ),
        )
    return Fallback(
        trigger=trigger,
        action=f"{smaller.title}: {setting(smaller.params)}; costs are estimates",
        costs=(
            ("decide and write the next plan version", 2),
            ("estimate memory again", 1),
            ("train again", training_minutes(inputs, smaller.params)[0]),
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
