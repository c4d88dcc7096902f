"""T001's steps: what can train here, does the model load and answer, and what will it cost."""

from __future__ import annotations

from oodatcaa.domain.evidence import GateKind
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.report import Metric
from oodatcaa.domain.task import Artefact, ArtefactKind, Failure
from oodatcaa.domain.training import GB, RunStatus
from oodatcaa.errors import OodatcaaError
from oodatcaa.roles.builder import records
from oodatcaa.roles.builder.bench import DOCS, Bench
from oodatcaa.roles.desk import StepOutcome
from oodatcaa.views import training_docs as docs

PROBE_ITERATIONS = 4
"""A process's peak was seen to rise until the third or fourth."""
PROBE_PROMPT = "Write a Python function that returns the larger of two numbers."
PROBE_TOKENS = 24


def probe_frameworks(bench: Bench) -> StepOutcome:
    desk = bench.desk
    probes = tuple(backend.probe() for backend in desk.backends.values())
    facts = records.FrameworkFacts(probes=probes, machine=desk.machine)
    desk.facts.put(bench.story.id, records.FRAMEWORKS, facts)
    text = docs.framework_evaluation(bench.plan, probes, desk.machine)
    usable = [probe.title for probe in probes if probe.usable]
    return StepOutcome(
        facts=tuple(
            f"{probe.title}: {probe.version or 'not installed'}"
            + (f" ({probe.problem})" if probe.problem else "")
            for probe in probes
        ),
        files=(bench.write(f"{DOCS}/framework-evaluation.md", text),),
        metrics=(
            Metric(name="frameworks usable here", value=", ".join(usable) or "0", source="probed"),
        ),
    )


def check_installation(bench: Bench) -> StepOutcome:
    chosen = bench.desk.backends[bench.plan.backend].probe()
    if not chosen.importable or chosen.problem:
        failure = Failure(
            kind="backend.unavailable",
            task=bench.subtask.id,
            summary=f"{chosen.title} can not be used: {chosen.problem or 'not importable'}",
            at=bench.desk.now(),
        )
        return StepOutcome(failure=failure)
    return StepOutcome(facts=(f"{chosen.title} {chosen.version} on {chosen.accelerator}",))


def load_model(bench: Bench) -> StepOutcome:
    model = bench.model()
    shape = bench.desk.models.shape(model.path)
    probe = bench.desk.backends[bench.plan.backend].infer(
        model.path, None, (PROBE_PROMPT,), PROBE_TOKENS, should_stop=bench.desk.should_stop
    )[0]
    facts = records.InferenceFacts(probe=probe)
    bench.desk.facts.put(bench.story.id, records.INFERENCE, facts)
    text = docs.model_loading(model.name, model.sha256, model.licence, shape, probe)
    return StepOutcome(
        facts=(
            f"{model.name}: {shape.parameters / 1e6:.0f} M parameters, "
            f"{shape.weight_bytes / GB:.2f} GB as stored",
            f"loaded in {probe.load_seconds:.1f} s",
        ),
        files=(bench.write(f"{DOCS}/model-loading.md", text),),
        artefacts=(Artefact(kind=ArtefactKind.MODEL, ref=model.name, sha256=model.sha256),),
        metrics=(
            Metric(name="model load time", value=f"{probe.load_seconds:.1f} s", source="measured"),
        ),
    )


def check_inference(bench: Bench) -> StepOutcome:
    facts = bench.desk.facts.get(bench.story.id, records.INFERENCE, records.InferenceFacts)
    if facts is None:
        raise OodatcaaError("facts.missing", "the model was not loaded by an earlier step")
    made = facts.probe.generation
    if made.tokens < 1:
        failure = Failure(
            kind="inference",
            task=bench.subtask.id,
            summary="the model loaded but generated no token",
            at=bench.desk.now(),
        )
        return StepOutcome(failure=failure)
    path = bench.write(f"{DOCS}/inference-check.md", docs.inference_check(facts.probe))
    rate = f"{made.tokens_per_second:.1f} tokens/s"
    return StepOutcome(
        facts=(f"{made.tokens} tokens at {rate}",),
        files=(path,),
        metrics=(Metric(name="generation speed", value=rate, source="measured"),),
    )


def profile_memory(bench: Bench) -> StepOutcome:
    """Estimate the plan's parameters; refuse what can not fit; measure a short probe if T001's."""
    desk, plan = bench.desk, bench.plan
    model = bench.model()
    estimate = desk.backends[plan.backend].estimate(bench.spec(model, "-", ""))
    fits = estimate.total_bytes <= plan.memory_limit_bytes
    facts = records.ProfileFacts(
        params=plan.params,
        estimate=estimate,
        limit_bytes=plan.memory_limit_bytes,
        fits=fits,
    )
    desk.facts.put(bench.story.id, records.PROFILE, facts)
    line = (
        f"estimated peak {estimate.total_bytes / GB:.2f} GB for batch {plan.params.batch_size} x "
        f"{plan.params.max_seq_length} tokens, limit {plan.memory_limit_bytes / GB:.2f} GB"
    )
    if not fits:
        return StepOutcome(facts=(line,), failure=_refusal(bench, facts))
    if not bench.step.deliverables:
        return StepOutcome(facts=(line,))
    facts = _measure_probe(bench, facts, model.path)
    desk.facts.put(bench.story.id, records.PROFILE, facts)
    peak = facts.probe_peak_bytes or 0
    path = bench.write(f"{DOCS}/memory-profile.md", docs.memory_profile(plan, facts))
    return StepOutcome(
        facts=(line, f"probe run measured {peak / GB:.2f} GB"),
        files=(path,),
        metrics=(
            Metric(
                name="predicted training peak",
                value=f"{estimate.total_bytes / GB:.2f} GB",
                source=f"estimated: {estimate.method}",
            ),
            Metric(name="probe run peak", value=f"{peak / GB:.2f} GB", source="measured"),
        ),
    )


WHAT_HELPS = (
    "what helps: a smaller batch with accumulation, gradient checkpointing, shorter sequences, "
    "fewer layers, heavier quantisation; the Refiner tries them in this order"
)


def _refusal(bench: Bench, facts: records.ProfileFacts) -> Failure:
    over = facts.estimate.total_bytes - facts.limit_bytes
    largest = max(facts.estimate.parts, key=lambda part: part.bytes)
    return Failure(
        kind="memory_gate",
        task=bench.subtask.id,
        layer="before",
        needed_bytes=facts.estimate.total_bytes,
        limit_bytes=facts.limit_bytes,
        summary=(
            f"memory gate (before): needs an estimated {facts.estimate.total_bytes / GB:.2f} GB, "
            f"{over / GB:.2f} GB over the limit of {facts.limit_bytes / GB:.2f} GB; largest part: "
            f"{largest.name} {largest.bytes / GB:.2f} GB"
        ),
        gates=(WHAT_HELPS,),
        at=bench.desk.now(),
    )


def probe_params(params: QLoRA, tokens: int) -> QLoRA:
    """A few iterations at the plan's batch, with at most `tokens` tokens a batch.

    They accumulate if the plan does, so that the training can be forecast from them.
    """
    length = max(32, min(params.max_seq_length, tokens // params.batch_size // 32 * 32))
    return params.evolve(
        max_seq_length=length,
        iters=PROBE_ITERATIONS,
        grad_accumulation_steps=min(2, params.grad_accumulation_steps),
        warmup_steps=0,
        val_batches=1,
        steps_per_eval=1000,
        save_every=1000,
        mask_prompt=False,
    )


def _measure_probe(
    bench: Bench, facts: records.ProfileFacts, model_path: str
) -> records.ProfileFacts:
    desk, plan = bench.desk, bench.plan
    full = desk.machine.accelerator != "cpu"
    tokens = plan.params.batch_size * plan.params.max_seq_length if full else desk.profile_tokens
    params = probe_params(plan.params, tokens)
    data = desk.datasets.write_probe(
        desk.scratch / "probe-data", params.batch_size * 2, params.max_seq_length
    )
    spec = bench.spec(bench.model(), data, "").evolve(model=model_path, params=params)
    prober = desk.probers[spec.backend]
    estimate = prober.estimate(spec)
    desk.say(f"{bench.subtask.id} measuring a probe run of {params.iters} iterations")
    run = prober.train(spec, on_progress=desk.on_progress, should_stop=desk.should_stop)
    if run.status is not RunStatus.FINISHED or run.peak_memory_bytes is None:
        reason = run.failure.message if run.failure else run.status.value
        raise OodatcaaError("profile.probe_failed", f"the probe run did not finish: {reason}")
    return facts.evolve(
        probe_params=params,
        probe_estimate=estimate,
        probe_peak_bytes=run.peak_memory_bytes,
        probe_run=run.run_id,
        probe_tokens_per_second=run.tokens_per_second,
    )


def document_installation(bench: Bench) -> StepOutcome:
    facts = _framework_facts(bench)
    text = docs.installation_guide(bench.plan, facts.probes, facts.machine, pins=bench.desk.pins())
    return StepOutcome(
        facts=("every command of the guide is listed with the versions found here",),
        files=(bench.write(f"{DOCS}/installation.md", text),),
    )


def document_dependencies(bench: Bench) -> StepOutcome:
    pins = bench.desk.pins()
    requirements = "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))
    files = (
        bench.write(f"{DOCS}/requirements-training.txt", requirements),
        bench.write(f"{DOCS}/dependencies.md", docs.dependency_pins(pins)),
    )
    return StepOutcome(facts=(f"{len(pins)} packages pinned",), files=files)


def quality_gates(bench: Bench) -> StepOutcome:
    """Write down which commands decide; the framework runs them at submission, not we."""
    gates = bench.plan.test_plan.quality_gates
    path = bench.write(f"{DOCS}/quality-gates.md", docs.quality_gates(gates))
    commands = [gate.command for gate in gates if gate.kind is GateKind.COMMAND]
    return StepOutcome(facts=(f"{len(commands)} commands decide at submission",), files=(path,))


def _framework_facts(bench: Bench) -> records.FrameworkFacts:
    facts = bench.desk.facts.get(bench.story.id, records.FRAMEWORKS, records.FrameworkFacts)
    if facts is None:
        raise OodatcaaError("facts.missing", "the frameworks were not probed by an earlier step")
    return facts
