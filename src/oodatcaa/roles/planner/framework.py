"""T001: choose the framework by facts probed here, and prove that it loads, answers and fits."""

from __future__ import annotations

import math

from oodatcaa.domain.evidence import GateSpec
from oodatcaa.domain.plan import Problem, Risk, Size, Step, StepKind, Trouble
from oodatcaa.roles.planner import gates
from oodatcaa.roles.planner.common import quality_line
from oodatcaa.roles.planner.design import Checks, Design, Forced, Group, step
from oodatcaa.roles.planner.frameworks import (
    FACTORS,
    IMPORTS,
    PACKAGES,
    alternative,
    decision_of,
    fallback,
    names,
    probe_of,
    title_of,
    usable,
)
from oodatcaa.roles.planner.inputs import PlanInputs
from oodatcaa.roles.planner.parameters import estimate_for, loading_minutes, training_minutes
from oodatcaa.roles.planner.scoring import with_pros_and_cons
from oodatcaa.roles.planner.wording import model_line, plural, setting, size


def design(inputs: PlanInputs, forced: Forced | None = None) -> Design:
    alternatives = tuple(
        with_pros_and_cons(alternative(inputs, name), FACTORS) for name in names(inputs)
    )
    decision = decision_of(inputs, alternatives, forced)
    backend = decision.chosen
    steps = _steps(inputs, backend)
    return Design(
        problem=_problem(inputs),
        constraints=(
            f"Asked parameters: {setting(inputs.params)} (from {inputs.params_from})",
            f"Backends in order of preference: {', '.join(inputs.objective.backends)}",
        ),
        interfaces=(
            "The training parent talks to its child through files: spec.json in, result.json out",
            "OBJECTIVE.md in; docs/training/*.md and requirements-training.txt out",
            f"The parameters and the backend of {inputs.story.id} are what later stories inherit",
        ),
        alternatives=alternatives,
        decision=decision,
        fallback=fallback(inputs, backend),
        size=Size.L,
        steps=steps,
        groups=(
            Group("Framework, model and inference", (1, 2, 3, 4), gates.files_of(steps, range(5))),
            Group(
                "Memory profile",
                (5,),
                (*gates.files_of(steps, (5,)), _predicted(inputs)),
            ),
            Group(
                "Installation guide, pins and quality gates",
                (6, 7, 8),
                (*gates.files_of(steps, (6, 7, 8)), _pins()),
            ),
        ),
        checks=_checks(inputs, backend, steps),
        risks=_risks(inputs, backend),
        handoff=_handoff(inputs, backend),
        backend=backend,
        params=inputs.params,
    )


def _predicted(inputs: PlanInputs) -> GateSpec:
    limit = gates.limit_bound(inputs.objective, "predicted_peak_memory")
    return gates.metric(
        "Predicted peak memory",
        limit,
        f"The estimate for {setting(inputs.params)} is within {limit.text}; critical: a plan that "
        "can not fit must not reach training",
        critical=True,
    )


def _pins() -> GateSpec:
    return gates.metric(
        "Dependency pins",
        "pin_mismatches == 0",
        "Every version in docs/training/requirements-training.txt is the one installed here",
    )


def _problem(inputs: PlanInputs) -> Problem:
    found = [
        f"{title_of(inputs, probe.name)}: "
        + (f"version {probe.version}" if usable(probe) else probe.problem or "not importable")
        for probe in inputs.probes
    ]
    estimate, source = estimate_for(inputs, inputs.params)
    if estimate is None:
        memory = "The memory that the asked parameters need is not known yet"
    else:
        over = estimate.total_bytes > inputs.ceiling_bytes
        memory = (
            f"The asked parameters need {size(estimate.total_bytes)} ({source}): "
            + ("more than" if over else "within")
            + f" {size(inputs.ceiling_bytes)}"
        )
    return Problem(
        current_state=(
            *(found or ["No framework was probed yet"]),
            model_line(inputs.objective.model, inputs.shape, inputs.model_error),
            memory,
        ),
        impact="Data, training, evaluation and publication all wait for a framework that loads "
        "the model and a set of parameters that fits the memory limit",
        statement=f"Which framework can fine-tune {inputs.objective.model} on this machine with "
        f"{setting(inputs.params)} inside {inputs.objective.memory_limit_text}?",
    )


def _steps(inputs: PlanInputs, backend: str) -> tuple[Step, ...]:
    return (*_trying(inputs, backend), _profiling(inputs), *_writing(inputs))


def _trying(inputs: PlanInputs, backend: str) -> tuple[Step, ...]:
    title, load = title_of(inputs, backend), loading_minutes(inputs.shape)
    kinds = StepKind
    return (
        step(
            1,
            kinds.PROBE_FRAMEWORKS,
            "Probe the frameworks",
            f"Import {', '.join(title_of(inputs, n) for n in names(inputs))} in this "
            "environment and write down version, accelerator and problem of each.",
            ("every framework has a probed answer",),
            files=("framework-evaluation.md",),
        ),
        step(
            2,
            kinds.CHECK_INSTALLATION,
            f"Check the installation of {title}",
            f"{title} must be importable here and name its accelerator.",
            (f"{title} is importable and reports no problem",),
        ),
        step(
            3,
            kinds.LOAD_MODEL,
            f"Load {inputs.objective.model}",
            f"Load the model in a child process: "
            f"{model_line(inputs.objective.model, inputs.shape, inputs.model_error)}.",
            ("the model loads; load time is measured",),
            load,
            files=("model-loading.md",),
        ),
        step(
            4,
            kinds.CHECK_INFERENCE,
            "Check inference",
            "Generate a few tokens and measure tokens/s.",
            ("at least one token is generated; tokens/s are measured",),
            files=("inference-check.md",),
        ),
    )


def _profiling(inputs: PlanInputs) -> Step:
    limit = inputs.objective.memory_limit_text
    batch = f"{inputs.params.batch_size} x {inputs.params.max_seq_length} tokens"
    return step(
        5,
        StepKind.PROFILE_MEMORY,
        "Profile memory",
        f"Estimate the peak for batch {batch}, refuse it above {limit}, then measure a "
        "two-iteration probe run beside its own estimate.",
        (f"predicted peak <= {limit}", f"probe peak <= {limit}"),
        1 + loading_minutes(inputs.shape),
        files=("memory-profile.md",),
        critical=True,
    )


def _writing(inputs: PlanInputs) -> tuple[Step, ...]:
    return (
        step(
            6,
            StepKind.DOCUMENT,
            "Write the installation guide",
            "Exact commands, versions found here and troubleshooting.",
            ("the guide names every command and version",),
            document="installation",
            files=("installation.md",),
        ),
        step(
            7,
            StepKind.DOCUMENT,
            "Pin the dependencies",
            "The installed versions, one line each.",
            ("pins equal the installed versions",),
            document="dependencies",
            files=("requirements-training.txt", "dependencies.md"),
        ),
        step(
            8,
            StepKind.QUALITY_GATES,
            "Write down the quality gates",
            f"{plural(len(inputs.quality_gates), 'command')} of .oodatcaa/config.toml; the "
            "framework runs them at submission.",
            ("all quality gates pass at the submitted commit",),
            files=("quality-gates.md",),
        ),
    )


def _acceptance(inputs: PlanInputs, backend: str, steps: tuple[Step, ...]) -> tuple[GateSpec, ...]:
    limit = gates.limit_bound(inputs.objective, "probe_peak_memory")
    weights = inputs.shape.weight_bytes if inputs.shape else 0
    load_limit = math.ceil((60 + weights / 50e6) / 10) * 10 if weights else 600
    documents = [path for s in steps[1:] for path in s.deliverables]
    return (
        gates.files("Framework evaluation", steps[0].deliverables),
        gates.command(
            "Installation",
            '{python} -c "import ' + IMPORTS.get(backend, backend) + '"',
            f"{title_of(inputs, backend)} is importable in the environment of the checks",
        ),
        gates.metric(
            "Model loading",
            f"model_load_seconds <= {load_limit}s",
            f"A fresh child process loads {inputs.objective.model} within {load_limit} s "
            + (f"(60 s and {size(weights)} at 50 MB/s)" if weights else "(size not known yet)"),
        ),
        gates.metric(
            "Inference",
            "inference_tokens_per_second > 0",
            "A fresh child process generates tokens at a measurable speed",
        ),
        gates.metric(
            "Measured probe",
            limit,
            f"The probe run's measured peak is within {limit.text}; critical",
            critical=True,
        ),
        _predicted(inputs),
        _pins(),
        gates.files("Documentation", documents),
        *gates.predictions(inputs.objective),
    )


def _checks(inputs: PlanInputs, backend: str, steps: tuple[Step, ...]) -> Checks:
    return Checks(
        acceptance=_acceptance(inputs, backend, steps),
        minutes=2 + 2 * loading_minutes(inputs.shape),
        scope=(
            f"{title_of(inputs, backend)} on this machine: import, model loading, inference, "
            "memory",
            "The documents in docs/training/ and the dependency pins",
        ),
        out_of_scope=(
            "Training quality: decided by the train and evaluate stories",
            "Frameworks that are not installed here: probed, not measured",
        ),
        integration=(
            "A child process started from the checked commit loads the model and answers",
            "The estimate is recomputed from config.json and tensor headers, not read from the "
            "builder's profile",
        ),
        regression=(quality_line(inputs),),
        benchmarks=_benchmarks(inputs),
        troubleshooting=_troubles(inputs, backend),
    )


def _benchmarks(inputs: PlanInputs) -> tuple[str, ...]:
    if inputs.inference is None:
        return ("Load time and tokens/s: first measured in steps 3 and 4",)
    probe = inputs.inference
    return (
        f"Load time at planning: {probe.load_seconds:.1f} s (measured)",
        f"Generation at planning: {probe.generation.tokens_per_second:.1f} tokens/s (measured)",
        f"Peak of loading and answering at planning: {size(probe.peak_memory_bytes)} (measured)",
    )


def _troubles(inputs: PlanInputs, backend: str) -> tuple[Trouble, ...]:
    package = PACKAGES.get(backend, backend)
    return (
        Trouble(
            symptom="AC2 fails with ModuleNotFoundError",
            cause=f"{package} is not in the environment of the checks",
            remedy=f"python -m pip install {package}, then oodatcaa doctor",
        ),
        Trouble(
            symptom="AC3 fails: the model is not found",
            cause="the name is neither a local mlx-lm folder nor reachable on the hub",
            remedy="oodatcaa models lists what is here; put a local folder into OBJECTIVE.md",
        ),
        Trouble(
            symptom="AC6 fails: predicted peak over the limit",
            cause=f"batch {inputs.params.batch_size} x {inputs.params.max_seq_length} tokens "
            "needs more than the limit",
            remedy="nothing by hand: the refiner's next plan lowers the parameters; "
            "oodatcaa estimate shows the parts",
        ),
        Trouble(
            symptom="AC7 fails: a pin differs",
            cause="a package was updated after step 7",
            remedy="install from docs/training/requirements-training.txt or let the step run again",
        ),
    )


def _risks(inputs: PlanInputs, backend: str) -> tuple[Risk, ...]:
    title = title_of(inputs, backend)
    works = usable(probe_of(inputs, backend))
    hub = inputs.model_error is not None
    budget = inputs.objective.budget.minutes
    minutes, derivation = training_minutes(inputs, inputs.params)
    return (
        Risk(
            risk=_memory_risk(inputs)[1],
            probability=_memory_risk(inputs)[0],
            impact="critical",
            mitigation="step 5 refuses by estimate before anything is trained, then measures",
            contingency="the refiner lowers batch, length, layers or bits, each re-estimated; "
            f"after {inputs.objective.budget.adapt_rounds} rounds a person decides",
        ),
        Risk(
            risk=f"{title} can not load {inputs.objective.model}",
            probability="high" if hub else "low" if inputs.inference else "medium",
            impact="high",
            mitigation="steps 3 and 4 load and generate before the memory profile",
            contingency="another model in OBJECTIVE.md, or the fallback backend",
        ),
        Risk(
            risk=f"{inputs.objective.model} can not be fetched"
            + (f": {inputs.model_error}" if hub else ""),
            probability="high" if hub else "low",
            impact="high",
            mitigation="the model is looked for on disk first; nothing else needs the network",
            contingency="oodatcaa models fetch demo, or a local folder as model",
        ),
        Risk(
            risk=f"{title} is missing or broken in this environment",
            probability="low" if works else "high",
            impact="high",
            mitigation="step 2 stops before any work that depends on it",
            contingency=fallback(inputs, backend).action,
        ),
        Risk(
            risk="Documents describe another environment than the one that trains",
            probability="low",
            impact="medium",
            mitigation="versions are read from the running environment; AC7 compares them again",
            contingency="install from docs/training/requirements-training.txt",
        ),
        Risk(
            risk=f"Training on {inputs.machine.accelerator} takes longer than the budget of "
            f"{budget} min: {derivation}",
            probability="high" if minutes > budget else "medium" if 2 * minutes > budget else "low",
            impact="medium",
            mitigation="tokens/s are measured in step 4; oodatcaa doctor says what would help",
            contingency="fewer iterations or layers in OBJECTIVE.md",
        ),
    )


def _memory_risk(inputs: PlanInputs) -> tuple[str, str]:
    estimate, source = estimate_for(inputs, inputs.params)
    if estimate is None:
        return "medium", "Training needs more than the limit: no estimate exists yet"
    share = estimate.total_bytes / inputs.ceiling_bytes
    level = "high" if share > 1 else "medium" if share > 0.7 else "low"
    return level, (
        f"Training needs more than the limit: {size(estimate.total_bytes)} ({source}) is "
        f"{share:.0%} of {size(inputs.ceiling_bytes)}"
    )


def _handoff(inputs: PlanInputs, backend: str) -> tuple[str, ...]:
    lines = [
        f"Framework: {title_of(inputs, backend)}; model: {inputs.objective.model}",
        f"Critical: step 5 and AC5, AC6 ({inputs.objective.memory_limit_text}); an estimate over "
        "the limit goes to the refiner, not around the gate",
        "In scope: probe, load, answer, profile, document. Out of scope: training and data",
        "If the model does not load: do not patch it; the fallback is in the decision",
    ]
    return tuple(lines)
