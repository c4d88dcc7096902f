"""T005's steps: the model card, the record of the adapter, the index; and plain commands."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory

from oodatcaa.domain.base import NonEmpty, Record, Sha256
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.task import Artefact, ArtefactKind, Failure, StoryKind
from oodatcaa.kit.memory_bound import MemoryBound
from oodatcaa.kit.process import run_command
from oodatcaa.roles.builder.bench import DOCS, Bench
from oodatcaa.roles.builder.evaluate import evaluation_facts
from oodatcaa.roles.builder.train import story_of_kind, training_facts
from oodatcaa.roles.desk import StepOutcome
from oodatcaa.views import training_docs as docs

COMMAND_TIMEOUT = 3600.0


class AdapterRecord(Record):
    """records/adapter.json: names the weights by hash; the weights stay in the run store."""

    run_id: NonEmpty
    backend: NonEmpty
    model: NonEmpty
    model_sha256: str
    adapter_sha256: Sha256
    data_sha256: str
    params: QLoRA
    test_loss_base: float | None
    test_loss_adapter: float | None


def model_card(bench: Bench) -> StepOutcome:
    desk = bench.desk
    training = training_facts(bench, story_of_kind(bench, StoryKind.TRAIN))
    evaluation = evaluation_facts(bench, story_of_kind(bench, StoryKind.EVALUATE)).result
    run = desk.runs.read(training.run_id)
    model = bench.model()
    record = AdapterRecord(
        run_id=run.run_id,
        backend=run.backend,
        model=model.name,
        model_sha256=model.sha256,
        adapter_sha256=run.adapter_sha256 or "",
        data_sha256=run.data_sha256,
        params=run.params,
        test_loss_base=evaluation.base_loss,
        test_loss_adapter=evaluation.adapter_loss,
    )
    text = docs.model_card(
        title=desk.objective.title,
        model_name=model.name,
        model_licence=model.licence,
        mlx_quantised=desk.models.shape(model.path).bits is not None,
        run=run,
        dataset=training.dataset,
        evaluation=evaluation,
    )
    files = (
        bench.write(f"{DOCS}/MODEL_CARD.md", text),
        bench.write(f"{DOCS}/records/adapter.json", record.model_dump_json(indent=2)),
    )
    return StepOutcome(
        facts=(f"adapter {record.adapter_sha256[:16]} of run {run.run_id}",),
        files=files,
        artefacts=(Artefact(kind=ArtefactKind.RUN, ref=run.run_id, sha256=record.adapter_sha256),),
    )


def document_publication(bench: Bench) -> StepOutcome:
    folder = bench.workspace.path / DOCS
    present = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    text = docs.publication_index(bench.desk.objective.title, tuple(present))
    return StepOutcome(
        facts=(f"{len(present)} documents and records indexed",),
        files=(bench.write(f"{DOCS}/README.md", text),),
    )


def command(bench: Bench) -> StepOutcome:
    """Run a custom step's command in the worktree; what it changed is committed.

    It sees a copy of the queue, is held to the gates' limits, and ends when the crew stops.
    """
    log = bench.desk.scratch / f"{bench.subtask.id}-step-{bench.step.number}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    desk = bench.desk
    held = desk.command_limits
    with (
        TemporaryDirectory(prefix="oodatcaa-step-") as folder,
        MemoryBound(held.memory_bytes) as bound,
    ):
        result = run_command(
            bench.step.command,
            cwd=bench.workspace.path,
            env={**os.environ, **desk.rehearsal(Path(folder) / "work")},
            timeout=COMMAND_TIMEOUT,
            output_path=log,
            should_stop=lambda: bool(bound.over()) or desk.should_stop(),
            limits=bound.limits(held),
            on_start=bound.watch,
        )
        without = "" if result.ok else bound.ran_out(result.tail)
    if without:
        return StepOutcome(
            failure=Failure(
                kind="memory",
                task=bench.subtask.id,
                summary=f"{shlex.quote(bench.step.command)}: {without}",
                limit_bytes=held.memory_bytes,
                at=desk.now(),
            )
        )
    if result.stopped:
        return StepOutcome(
            failure=Failure(
                kind="stopped",
                task=bench.subtask.id,
                summary=f"{shlex.quote(bench.step.command)} was stopped",
                at=desk.now(),
            )
        )
    if not result.ok:
        failure = Failure(
            kind="command",
            task=bench.subtask.id,
            summary=(
                f"{shlex.quote(bench.step.command)} ended with "
                f"{'a time-out' if result.timed_out else result.exit_code}"
            ),
            at=bench.desk.now(),
        )
        return StepOutcome(failure=failure)
    return StepOutcome(facts=(f"exit code 0 in {result.duration:.1f} s",), files=(".",))
