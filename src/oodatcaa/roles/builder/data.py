"""T002's steps: build the data, validate every line, write the card."""

from __future__ import annotations

from oodatcaa.domain.report import Metric
from oodatcaa.domain.task import Artefact, ArtefactKind, Failure
from oodatcaa.errors import OodatcaaError
from oodatcaa.roles.builder.bench import DOCS, Bench
from oodatcaa.roles.builder.records import DATASET, DatasetFacts
from oodatcaa.roles.desk import StepOutcome
from oodatcaa.views.training_docs import data_card


def build_data(bench: Bench) -> StepOutcome:
    desk = bench.desk
    model = bench.model()
    dataset = desk.datasets.build(
        desk.objective.data, model_path=model.path, params=bench.plan.params, say=desk.say
    )
    desk.facts.put(bench.story.id, DATASET, DatasetFacts(dataset=dataset))
    counts = ", ".join(f"{name} {split.examples}" for name, split in dataset.splits.items())
    return StepOutcome(
        facts=(f"{dataset.name}: {counts}", f"sha256 {dataset.sha256[:16]}"),
        artefacts=(Artefact(kind=ArtefactKind.DATA, ref=dataset.path, sha256=dataset.sha256),),
        metrics=tuple(
            Metric(name=f"examples in {name}", value=str(split.examples), source="counted")
            for name, split in dataset.splits.items()
        ),
    )


def validate_data(bench: Bench) -> StepOutcome:
    facts = dataset_facts(bench, bench.story.id)
    found = bench.desk.datasets.examine(
        facts.dataset.path, model_path=bench.model().path, params=bench.plan.params
    )
    problems = found.problems
    bench.desk.facts.put(bench.story.id, DATASET, facts.evolve(problems=problems))
    if problems:
        failure = Failure(
            kind="data.invalid",
            task=bench.subtask.id,
            summary=f"{len(problems)} bad lines, first {problems[0]}",
            gates=problems[:50],
            at=bench.desk.now(),
        )
        return StepOutcome(facts=problems[:10], failure=failure)
    return StepOutcome(facts=("every line of every split is valid", *found.to_look_at()))


def document_data_card(bench: Bench) -> StepOutcome:
    facts = dataset_facts(bench, bench.story.id)
    files = (
        bench.write(f"{DOCS}/DATA_CARD.md", data_card(facts.dataset)),
        bench.write(f"{DOCS}/records/dataset.json", facts.dataset.model_dump_json(indent=2)),
    )
    return StepOutcome(facts=("data card written",), files=files)


def dataset_facts(bench: Bench, story: str) -> DatasetFacts:
    """What the data story left. Raises OodatcaaError when it left nothing."""
    facts = bench.desk.facts.get(story, DATASET, DatasetFacts)
    if facts is None:
        raise OodatcaaError(
            "facts.missing",
            f"{story} left no data record",
            hint="oodatcaa doctor tells which subtask has to run again",
        )
    return facts
