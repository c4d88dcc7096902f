"""T004's steps: base against adapter on the test split, and one held-out prompt side by side."""

from __future__ import annotations

from typing import Literal

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.report import Metric
from oodatcaa.domain.task import Failure, StoryKind
from oodatcaa.domain.training import JUDGED_LENGTH, EvalRequest, EvalResult
from oodatcaa.errors import OodatcaaError
from oodatcaa.roles.builder import records
from oodatcaa.roles.builder.bench import DOCS, Bench
from oodatcaa.roles.builder.train import story_of_kind, training_facts
from oodatcaa.roles.desk import StepOutcome
from oodatcaa.views import training_docs as docs

GENERATED_TOKENS = 64


def evaluate(bench: Bench) -> StepOutcome:
    desk, plan = bench.desk, bench.plan
    training = training_facts(bench, story_of_kind(bench, StoryKind.TRAIN))
    request = judgement(
        plan.params,
        model=bench.model().path,
        adapter_dir=training.adapter_dir,
        data_dir=training.dataset.path,
        examples=desk.objective.eval_examples,
        memory_limit_bytes=plan.memory_limit_bytes,
    )
    result = desk.backends[plan.backend].evaluate(request, should_stop=desk.should_stop)
    facts = records.EvaluationFacts(
        result=result, run_id=training.run_id, adapter_dir=training.adapter_dir
    )
    desk.facts.put(bench.story.id, records.EVALUATION, facts)
    if result.base_loss is None or result.adapter_loss is None or result.drop is None:
        failure = Failure(
            kind="not_finite",
            task=bench.subtask.id,
            summary="the test loss could not be computed: a value is not finite",
            at=desk.now(),
        )
        return StepOutcome(failure=failure)
    line = (
        f"test loss {result.base_loss:.3f} -> {result.adapter_loss:.3f}, "
        f"drop {result.drop:.3f} [{result.drop_low:.3f}, {result.drop_high:.3f}]"
    )
    return StepOutcome(
        facts=(f"{line} on {result.examples} examples", *_unseen(result)),
        metrics=(
            Metric(name="test loss, base", value=f"{result.base_loss:.3f}", source="measured"),
            Metric(
                name="test loss, adapter", value=f"{result.adapter_loss:.3f}", source="measured"
            ),
        ),
    )


def _unseen(result: EvalResult) -> tuple[str, ...]:
    return (f"not in these figures: {result.unseen}",) if result.unseen else ()


def judgement(
    params: QLoRA,
    *,
    model: str,
    adapter_dir: str,
    data_dir: str,
    split: Literal["valid", "test"] = "test",
    examples: int | None,
    memory_limit_bytes: int,
) -> EvalRequest:
    """What an adapter of `params` is judged on: no answer that was trained on is cut shorter."""
    return EvalRequest(
        model=model,
        adapter_dir=adapter_dir,
        data_dir=data_dir,
        split=split,
        max_examples=examples,
        max_seq_length=max(JUDGED_LENGTH, params.max_seq_length),
        mask_prompt=params.mask_prompt,
        quantize_bits=params.quantize_bits,
        seed=params.seed,
        memory_limit_bytes=memory_limit_bytes,
    )


def compare_generations(bench: Bench) -> StepOutcome:
    desk = bench.desk
    prompt = desk.objective.prompt.strip()
    if not prompt:
        return StepOutcome(facts=("the objective names no held-out prompt: nothing to compare",))
    facts = evaluation_facts(bench, bench.story.id)
    backend = desk.backends[bench.plan.backend]
    model = bench.model().path
    base, tuned = (
        backend.infer(
            model,
            adapter,
            (prompt,),
            GENERATED_TOKENS,
            memory_limit_bytes=bench.plan.memory_limit_bytes,
            should_stop=desk.should_stop,
        )[0]
        for adapter in (None, facts.adapter_dir)
    )
    made = records.GenerationFacts(prompt=prompt, base=base, tuned=tuned)
    desk.facts.put(bench.story.id, records.GENERATIONS, made)
    return StepOutcome(facts=("one held-out prompt answered by base and adapter",))


def document_evaluation(bench: Bench) -> StepOutcome:
    facts = evaluation_facts(bench, bench.story.id)
    made = bench.desk.facts.get(bench.story.id, records.GENERATIONS, records.GenerationFacts)
    text = docs.evaluation_report(
        facts.result,
        run_id=facts.run_id,
        prompt=made.prompt if made else None,
        base=made.base.generation if made else None,
        tuned=made.tuned.generation if made else None,
    )
    files = (
        bench.write(f"{DOCS}/evaluation.md", text),
        bench.write(f"{DOCS}/records/evaluation.json", facts.result.model_dump_json(indent=2)),
    )
    return StepOutcome(facts=("evaluation written",), files=files)


def evaluation_facts(bench: Bench, story: str) -> records.EvaluationFacts:
    """What the evaluation left. Raises OodatcaaError when it left nothing."""
    facts = bench.desk.facts.get(story, records.EVALUATION, records.EvaluationFacts)
    if facts is None:
        raise OodatcaaError("facts.missing", f"{story} left no evaluation record")
    return facts
