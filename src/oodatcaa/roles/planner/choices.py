"""Sets of training parameters as facts, the decision between them, and the way back."""

from __future__ import annotations

from oodatcaa.domain.plan import Alternative, Fact, Factor, Fallback, PlanDecision
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import DatasetRecord
from oodatcaa.roles.planner.design import Forced
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
from oodatcaa.roles.planner.wording import count, setting

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


def choices(inputs: PlanInputs, forced: Forced | None) -> tuple[ParamOption, ...]:
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


def alternatives(inputs: PlanInputs, options: tuple[ParamOption, ...]) -> tuple[Alternative, ...]:
    most = max(_examples(option.params, inputs.dataset) for option in options)
    minutes = {option.key: training_minutes(inputs, option.params) for option in options}
    shortest = min(value for value, _ in minutes.values())
    known = training_speed(inputs)[0] is not None
    # Nothing of an adaptation was profiled yet, so that factor can not compare its options.
    adapted = options[0].key == "adapted"
    ways = []
    for option in options:
        estimate, source = option.estimate, ""
        if estimate is None:
            estimate, source = estimate_for(inputs, option.params)
        else:
            source = f"estimated from {estimate.method}"
        seen = _examples(option.params, inputs.dataset)
        took, derivation = minutes[option.key]
        facts = {
            "setting": Fact(value=setting(option.params), source="given"),
            "memory": memory_fact(
                estimate.total_bytes if estimate else None, inputs.ceiling_bytes, source
            ),
            "inherited": NOT_AVAILABLE if adapted else _profiled(inputs, option),
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


def _examples(params: QLoRA, dataset: DatasetRecord | None) -> int:
    """A packed row holds as many as have its length together."""
    rows = params.iters * params.batch_size
    mean = dataset.splits["train"].tokens_mean if dataset and "train" in dataset.splits else None
    return round(rows * max(1.0, params.max_seq_length / mean)) if params.packing and mean else rows


def _profiled(inputs: PlanInputs, option: ParamOption) -> Fact:
    same = option.params.evolve(max_seq_length=inputs.params.max_seq_length) == inputs.params
    value = f"{'yes' if same else 'no'}: parameters come from {inputs.params_from}"
    return Fact(value=value, source="given by the plan they come from", score=1.0 if same else 0.0)


def decision_of(
    inputs: PlanInputs,
    options: tuple[ParamOption, ...],
    ways: tuple[Alternative, ...],
    forced: Forced | None,
) -> PlanDecision:
    first = options[0].key
    fitting = [way.key for way in ways if way.facts["memory"].score != 0.0]
    known = {way.key for way in ways if way.facts["memory"].score}
    because = [f"Sequence length {length_line(inputs, inputs.params)}"]
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


def length_line(inputs: PlanInputs, asked: QLoRA) -> str:
    longest = inputs.dataset.longest if inputs.dataset else None
    return fitted_length(asked, longest)[1]


def fallback(inputs: PlanInputs, options: tuple[ParamOption, ...], chosen: str) -> Fallback:
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
