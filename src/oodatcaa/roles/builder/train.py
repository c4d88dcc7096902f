"""T003's steps: train under the memory gate (or go on from a checkpoint), then write it down."""

from __future__ import annotations

from pathlib import Path

from oodatcaa.domain.memory import MemoryEstimate
from oodatcaa.domain.report import Metric
from oodatcaa.domain.task import Artefact, ArtefactKind, Failure, StoryKind
from oodatcaa.domain.training import GB, RunRecord, RunStatus
from oodatcaa.errors import OodatcaaError
from oodatcaa.roles.builder import records
from oodatcaa.roles.builder.bench import DOCS, Bench
from oodatcaa.roles.builder.data import dataset_facts
from oodatcaa.roles.desk import Desk, StepOutcome
from oodatcaa.views import training_docs as docs

CPU_PROBE_TOKENS, GPU_PROBE_TOKENS = 4096, 8192
"""Batches of at most this many tokens are measured as they are: ten steps of a whole training, or
two that take a minute together."""


def story_of_kind(bench: Bench, kind: StoryKind) -> str:
    """The id of the sprint's story of this kind. Raises OodatcaaError when there is none."""
    for story in bench.desk.read_board().stories:
        if story.kind is kind:
            return story.id
    raise OodatcaaError("sprint.no_story", f"the sprint has no {kind.value} story")


def train(bench: Bench) -> StepOutcome:
    desk = bench.desk
    model = bench.model()
    dataset = dataset_facts(bench, story_of_kind(bench, StoryKind.DATA)).dataset
    spec = bench.spec(model, dataset.path, dataset.sha256)
    backend = desk.backends[bench.plan.backend]
    resumed = desk.runs.resumed(spec)
    if resumed is not None:
        spec, run_before = resumed
        desk.say(f"{bench.subtask.id} goes on from the checkpoint of run {run_before}")
    estimate = backend.forecast(spec, budget=probe_budget(desk), should_stop=desk.should_stop)
    desk.say(f"{bench.subtask.id} forecast {estimate.total_bytes / GB:.2f} GB: {estimate.method}")
    if estimate.unknown and estimate.total_bytes > spec.memory_limit_bytes:
        # The probe itself met the limit. Any other refusal is the backend's, and leaves a record.
        return StepOutcome(failure=_does_not_fit(bench, estimate, spec.memory_limit_bytes))
    run = backend.train(spec, on_progress=desk.on_progress, should_stop=desk.should_stop)
    folder = desk.runs.folder(run.run_id)
    if run.status is not RunStatus.FINISHED:
        return StepOutcome(
            facts=(f"run {run.run_id}: {run.status.value}",), failure=_why(bench, run)
        )
    facts = records.TrainingFacts(
        run_id=run.run_id,
        run_dir=str(folder),
        adapter_dir=str(folder / "adapters"),
        estimate=estimate,
        dataset=dataset,
    )
    desk.facts.put(bench.story.id, records.TRAINING, facts)
    losses = [point.loss for point in run.train_losses]
    peak = (run.peak_memory_bytes or 0) / GB
    return StepOutcome(
        facts=(
            f"run {run.run_id}: {run.iterations_done} iterations, "
            f"{run.optimizer_steps} optimizer steps",
            *([f"train loss {losses[0]:.3f} -> {losses[-1]:.3f}"] if losses else []),
            f"peak {peak:.2f} GB measured, {estimate.total_bytes / GB:.2f} GB forecast "
            f"({estimate.method})",
        ),
        artefacts=(
            Artefact(kind=ArtefactKind.RUN, ref=run.run_id, sha256=run.adapter_sha256 or ""),
        ),
        metrics=(
            Metric(name="peak memory", value=f"{peak:.2f} GB", source="measured"),
            Metric(
                name="training speed",
                value=f"{run.tokens_per_second or 0:.0f} target tokens/s",
                source="measured",
            ),
        ),
    )


def probe_budget(desk: Desk) -> int:
    """Tokens of a batch that a probe may measure as it is."""
    on_cpu = desk.machine.accelerator == "cpu"
    return max(desk.profile_tokens, CPU_PROBE_TOKENS) if on_cpu else GPU_PROBE_TOKENS


def _does_not_fit(bench: Bench, estimate: MemoryEstimate, limit: int) -> Failure:
    over = estimate.total_bytes - limit
    return Failure(
        kind="memory_gate",
        task=bench.subtask.id,
        layer="before",
        needed_bytes=estimate.total_bytes,
        limit_bytes=limit,
        summary=(
            f"memory gate (before, preflight): forecast {estimate.total_bytes / GB:.2f} GB, "
            f"{over / GB:.2f} GB over the limit of {limit / GB:.2f} GB; {estimate.method}"
        ),
        at=bench.desk.now(),
    )


def _why(bench: Bench, run: RunRecord) -> Failure:
    if run.failure is not None:
        return bench.failed(run.failure)
    return Failure(
        kind="interrupted",
        task=bench.subtask.id,
        summary=f"run {run.run_id} ended as {run.status.value}",
        at=bench.desk.now(),
    )


def training_facts(bench: Bench, story: str) -> records.TrainingFacts:
    """What the training story left. Raises OodatcaaError when it left nothing."""
    facts = bench.desk.facts.get(story, records.TRAINING, records.TrainingFacts)
    if facts is None:
        raise OodatcaaError("facts.missing", f"{story} left no training record")
    return facts


def document_training(bench: Bench) -> StepOutcome:
    desk = bench.desk
    facts = training_facts(bench, bench.story.id)
    run = desk.runs.read(facts.run_id)
    files = [bench.write(f"{DOCS}/records/run.json", run.model_dump_json(indent=2))]
    config = Path(facts.run_dir) / "lora_config.yaml"
    files.append(
        bench.write(f"{DOCS}/records/lora_config.yaml", config.read_text(encoding="utf-8"))
    )
    plot = f"{DOCS}/plots/run.png"
    (bench.workspace.path / plot).parent.mkdir(parents=True, exist_ok=True)
    plotted = desk.runs.plot(facts.run_id, bench.workspace.path / plot)
    if plotted:
        files.append(plot)
    text = docs.training_report(
        bench.plan, run, facts.estimate, facts.dataset, plot="plots/run.png" if plotted else None
    )
    files.append(bench.write(f"{DOCS}/training.md", text))
    note = "plot written" if plotted else "no plot: matplotlib is not installed"
    return StepOutcome(facts=(note,), files=tuple(files))
