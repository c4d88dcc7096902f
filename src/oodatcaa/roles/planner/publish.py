"""T005: name the adapter in git by hash, describe it, prove that stock tools load it."""

from __future__ import annotations

from oodatcaa.domain.evidence import GateSpec
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
from oodatcaa.roles.planner import gates
from oodatcaa.roles.planner.common import quality_line
from oodatcaa.roles.planner.design import Checks, Design, Forced, Group, step
from oodatcaa.roles.planner.evaluate import run_line, run_paths
from oodatcaa.roles.planner.frameworks import loader, trained_by
from oodatcaa.roles.planner.inputs import PlanInputs
from oodatcaa.roles.planner.parameters import adapter_bytes, loading_minutes
from oodatcaa.roles.planner.scoring import NOT_AVAILABLE, decide, with_pros_and_cons
from oodatcaa.roles.planner.wording import size

RECORD_BYTES = 20_000
"""Card, record and index together; a planning figure."""

FACTORS = (
    Factor(
        key="rule",
        title="Weights stay out of git",
        weight=4,
        why="a repository never forgets a binary",
    ),
    Factor(key="growth", title="Growth of the repository", weight=2, why="paid by every clone"),
    Factor(key="exact", title="Names exact bytes", weight=3, why="what was tested is what is used"),
    Factor(
        key="offline",
        title="Needs no account or network",
        weight=2,
        why="the crew works unattended",
    ),
)


def design(inputs: PlanInputs, forced: Forced | None = None) -> Design:
    ways = tuple(with_pros_and_cons(way, FACTORS) for way in _alternatives(inputs))
    decision = decide(
        ways,
        FACTORS,
        candidates=("record", "weights"),
        because=(
            *((f"Adaptation: {forced.reason}",) if forced else ()),
            "What becomes public is a person's decision: uploading is not a candidate",
        ),
        trade_offs=("Another machine needs a copy of the run folder: git holds only its hashes",),
    )
    steps = _steps(inputs)
    return Design(
        problem=Problem(
            current_state=(
                run_line(inputs.run)[:1].upper() + run_line(inputs.run)[1:],
                f"Adapter: {_adapter(inputs)}",
            ),
            impact="An adapter without card and hash can not be found, trusted or reproduced",
            statement=f"Make {_run(inputs)}'s adapter usable by others: described, named by hash, "
            f"loadable with {loader(inputs)}",
        ),
        constraints=("Card and record are generated from records, not written by hand",),
        interfaces=(
            f"models/runs/{trained_by(inputs)}/<run>/adapters/ for {loader(inputs)}",
            "docs/training/records/adapter.json: run id and hashes of model, data and adapter",
        ),
        alternatives=ways,
        decision=decision,
        fallback=Fallback(
            trigger=f"{loader(inputs)} does not load the adapter, or a hash differs",
            action="Publish the last good checkpoint of the run instead, after evaluating it",
            costs=(("evaluate the checkpoint", 5), ("write card and record again", 2)),
        ),
        size=Size.S,
        steps=steps,
        groups=(
            Group(
                "Model card, adapter record and index",
                (1, 2),
                (*gates.files_of(steps, (1, 2)), _hashes()),
            ),
        ),
        checks=_checks(inputs, steps),
        risks=_risks(inputs),
        handoff=(
            f"Adapter of {_run(inputs)}: {_adapter(inputs)}",
            "Nothing from the run store is added to git; *.safetensors in a commit is a defect",
            f"Use afterwards: {_usage(inputs)}",
            "Compare and serve it here: oodatcaa models list, oodatcaa serve",
        ),
        backend=inputs.backend,
        params=inputs.params,
        inputs=run_paths(inputs),
    )


def _run(inputs: PlanInputs) -> str:
    return f"run {inputs.run.run_id}" if inputs.run else "the train story's run"


def _usage(inputs: PlanInputs) -> str:
    folder = f"{inputs.run_dir}/adapters" if inputs.run_dir else "<run folder>/adapters"
    if trained_by(inputs) == "mlx":
        return f"mlx_lm.generate --model <model folder> --adapter-path {folder}"
    return f"PeftModel.from_pretrained(<base model>, {folder!r})"


def _adapter(inputs: PlanInputs) -> str:
    run = inputs.run
    named = f"sha256 {run.adapter_sha256[:16]}" if run and run.adapter_sha256 else "no hash yet"
    weight = _weights(inputs)
    return f"{named}, about {size(weight)} (estimated)" if weight else named


def _weights(inputs: PlanInputs) -> int | None:
    params = inputs.run.params if inputs.run else inputs.params
    return adapter_bytes(inputs.shape, params) if inputs.shape else None


def _alternatives(inputs: PlanInputs) -> tuple[Alternative, ...]:
    weight = _weights(inputs)
    if weight is None:
        grown = NOT_AVAILABLE
    else:
        grown = Fact(
            value=f"{size(weight)} for every version",
            source="estimated from model shape, rank and layers",
            score=round(RECORD_BYTES / (RECORD_BYTES + weight), 4),
        )
    record = Fact(value=size(RECORD_BYTES), source="planning figure", score=1.0)
    given = "given by the method"

    def fact(value: str, score: float) -> Fact:
        return Fact(value=value, source=given, score=score)

    return (
        Alternative(
            key="record",
            title="Record in git, weights in the run store",
            facts={
                "rule": fact("kept", 1.0),
                "growth": record,
                "exact": fact("by sha256", 1.0),
                "offline": fact("yes", 1.0),
            },
            effort_minutes=2,
        ),
        Alternative(
            key="weights",
            title="Weights in git",
            facts={
                "rule": fact("broken", 0.0),
                "growth": grown,
                "exact": fact("by commit", 1.0),
                "offline": fact("yes", 1.0),
            },
            effort_minutes=3,
        ),
        Alternative(
            key="hub",
            title="Upload to a model hub",
            facts={
                "rule": fact("kept", 1.0),
                "growth": record,
                "exact": fact("by revision", 1.0),
                "offline": fact("no: account, token and network", 0.0),
            },
            cons=("a person has to decide what becomes public",),
            effort_minutes=15,
        ),
    )


def _steps(inputs: PlanInputs) -> tuple[Step, ...]:
    return (
        step(
            1,
            StepKind.MODEL_CARD,
            "Write model card and adapter record",
            f"From {_run(inputs)} and its evaluation: base model, data, parameters, losses, "
            "memory, limits, licence, hashes.",
            ("the record's adapter hash is the file's",),
            files=("MODEL_CARD.md", "records/adapter.json"),
        ),
        step(
            2,
            StepKind.DOCUMENT,
            "Write the index of docs/training",
            "One line for every document and record of the sprint, and how to use the adapter.",
            ("every document in the folder is listed",),
            document="publication",
            files=("README.md",),
        ),
    )


def _hashes() -> GateSpec:
    return gates.metric(
        "Adapter is the one recorded",
        "adapter_hash_mismatches == 0",
        "The hash in docs/training/records/adapter.json is that of the file in the run store; "
        "critical",
        critical=True,
    )


def _checks(inputs: PlanInputs, steps: tuple[Step, ...]) -> Checks:
    load = loading_minutes(inputs.shape)
    return Checks(
        acceptance=(
            gates.metric(
                f"{loader(inputs)[:1].upper()}{loader(inputs)[1:]} uses it",
                "adapter_loads == 1",
                f"Model and adapter loaded with {loader(inputs)} generate tokens; critical",
                critical=True,
                timeout=max(600, 240 * load),
            ),
            _hashes(),
            gates.files("Card and record", steps[0].deliverables),
            gates.files("Index", steps[1].deliverables),
        ),
        minutes=1 + load,
        scope=(
            f"The adapter in the run store, loaded by {loader(inputs)}",
            "Card, record and index",
        ),
        out_of_scope=("Uploading to a hub", "Quality: decided by the evaluate story"),
        integration=("Run, evaluation and adapter records name the same hashes",),
        regression=(quality_line(inputs), "No weight file is in the commit"),
        benchmarks=(f"Adapter: {_adapter(inputs)}", f"Known before: {run_line(inputs.run)}"),
        troubleshooting=(
            Trouble(
                symptom="adapter_loads is 0",
                cause="adapter_config.json names other layers or keys than the tensors",
                remedy=f"try by hand: {_usage(inputs)}",
            ),
            Trouble(
                symptom="adapter_hash_mismatches is not 0",
                cause="the run folder was changed after training",
                remedy="oodatcaa runs shows finished runs; restore the folder or train again",
            ),
        ),
    )


def _risks(inputs: PlanInputs) -> tuple[Risk, ...]:
    return (
        Risk(
            risk="The adapter works only with this project's loader",
            probability="low",
            impact="high",
            mitigation=f"AC1 loads it with {loader(inputs)} in its own process",
            contingency="write adapter_config.json again from the run's spec",
        ),
        Risk(
            risk="Weights get into git",
            probability="low",
            impact="high",
            mitigation="models/ is git-ignored; steps commit named files only",
            contingency="drop the branch before the merge and build it again",
        ),
        Risk(
            risk="The only copy of the adapter is lost with this machine",
            probability="medium",
            impact="medium",
            mitigation="the record names run, data, model and seed: enough to train it again",
            contingency=f"copy {inputs.run_dir or 'the run folder'} elsewhere",
        ),
    )
