"""`oodatcaa evaluate`: finished runs against their base, against other runs, and at tasks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from oodatcaa.app.desk import ModelShelf, Workshop
from oodatcaa.app.project import Project
from oodatcaa.domain.base import NonEmpty, Record
from oodatcaa.domain.comparison import Comparison, compare
from oodatcaa.domain.ports import TrainingBackend
from oodatcaa.domain.training import EvalRequest, EvalResult, RunRecord, RunStatus
from oodatcaa.errors import OodatcaaError
from oodatcaa.roles.builder.evaluate import judgement
from oodatcaa.training.generation_checks import Score, exact_match, pass_at_1

Split = Literal["valid", "test"]
MAX_TASK_BYTES = 20_000_000


class GenerationTask(Record):
    """A line of a tasks file: a prompt, and either the exact answer or code that tests it."""

    prompt: NonEmpty
    expected: NonEmpty | None = None
    test: NonEmpty | None = Field(default=None, description="Python that asserts on the answer's")

    @model_validator(mode="after")
    def _has_one_check(self) -> GenerationTask:
        if (self.expected is None) == (self.test is None):
            raise ValueError("needs either `expected` or `test`")
        return self


class TaskScores(Record):
    """Greedy answers, one a task. A kind of check that no task asks for is left out."""

    exact_match: Score | None = None
    pass_at_1: Score | None = None


class RunEvaluation(Record):
    run_id: str
    losses: EvalResult
    base_tasks: TaskScores | None = None
    tasks: TaskScores | None = None


class Evaluation(Record):
    """`verdict` says whether `runs` are better than `against`; None without something to beat."""

    split: Split
    runs: tuple[RunEvaluation, ...]
    against: tuple[RunEvaluation, ...] = ()
    verdict: Comparison | None = None


def evaluate_runs(
    project: Project,
    runs: Sequence[str],
    *,
    against: Sequence[str] = (),
    split: Split = "test",
    examples: int | None = None,
    tasks: Path | None = None,
    max_tokens: int = 256,
    say: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Losses of base and adapter over the split, recomputed in a child for each run; with
    `against` a verdict over the seeds of both sides; with `tasks` greedy answers, checked.

    Raises OodatcaaError: `evaluate.unfinished`, `evaluate.different_data` when the runs do not
    have the same held-out examples, `tasks.invalid` with every bad line at once.
    """
    asked = read_tasks(tasks) if tasks is not None else ()
    _refuse_repeated(runs, against)
    workshop = Workshop(project)
    workshop.runs.recover()
    records = {name: _finished(workshop, name) for name in dict.fromkeys((*runs, *against))}
    _refuse_different(tuple(records.values()))
    if against:
        _refuse_incomparable([records[name] for name in runs], [records[n] for n in against])
    shelf = ModelShelf(say, project.root)
    backends = workshop.backends(shelf, project.objective())
    found: dict[str, RunEvaluation] = {}
    answers: dict[str, TaskScores] = {}
    for name, run in records.items():
        say(f"{name}: the {split} split, base and adapter")
        backend = backends[run.backend]
        adapter = str(workshop.runs.folder(run) / "adapters")
        losses = backend.evaluate(_request(run, adapter, split, examples))
        one = RunEvaluation(run_id=name, losses=losses)
        if asked:
            if run.model not in answers:
                answers[run.model] = _answered(backend, run, None, asked, max_tokens)
            one = one.evolve(
                base_tasks=answers[run.model],
                tasks=_answered(backend, run, adapter, asked, max_tokens),
            )
        found[name] = one
    ours, theirs = (tuple(found[name] for name in side) for side in (runs, against))
    return Evaluation(
        split=split,
        runs=ours,
        against=theirs,
        verdict=_verdict(theirs, ours) if theirs else None,
    )


def read_tasks(path: Path) -> tuple[GenerationTask, ...]:
    """The tasks of a JSONL file. Raises OodatcaaError `tasks.invalid` naming every bad line."""
    try:
        if path.stat().st_size > MAX_TASK_BYTES:
            raise OodatcaaError(
                "tasks.too_large",
                f"{path} has more than {MAX_TASK_BYTES // 10**6} MB",
                hint="split it",
            )
        lines = path.read_text(encoding="utf-8").split("\n")  # a string may hold other line ends
    except (OSError, UnicodeDecodeError) as error:
        raise OodatcaaError(
            "tasks.unreadable", f"{path} can not be read: {error}", hint="name a JSONL file"
        ) from error
    found: list[GenerationTask] = []
    problems: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(GenerationTask.model_validate(json.loads(line)))
        except ValidationError as error:
            problems += [
                f"line {number}: {'.'.join(map(str, item['loc'])) or 'the task'}: {item['msg']}"
                for item in error.errors()
            ]
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number}: no JSON: {error}")
    if not found and not problems:
        problems.append("it holds no task")
    if problems:
        raise OodatcaaError(
            "tasks.invalid",
            f"{path}: {problems[0]}" if len(problems) == 1 else f"{path}: {len(problems)} problems",
            hint='a line is {"prompt": …, "expected": …} or {"prompt": …, "test": …}',
            details=tuple(problems),
        )
    return tuple(found)


def _finished(workshop: Workshop, name: str) -> RunRecord:
    run = next((one for one in workshop.runs.list().runs if one.run_id == name), None)
    if run is None:
        raise OodatcaaError(
            "run.unknown", f"there is no run {name}", hint="oodatcaa runs lists them"
        )
    if run.status is not RunStatus.FINISHED:
        running = run.status is RunStatus.RUNNING
        raise OodatcaaError(
            "evaluate.unfinished",
            f"run {name} is {run.status.value}: it has no adapter to judge",
            hint="wait for its end: oodatcaa runs" if running else f"oodatcaa resume {name}",
        )
    return run


def _refuse_different(runs: tuple[RunRecord, ...]) -> None:
    if len({run.data_sha256 for run in runs}) > 1:
        raise OodatcaaError(
            "evaluate.different_data",
            "the runs were trained on different data: their held-out examples differ",
            hint="oodatcaa runs --json shows each run's data_sha256",
            details=tuple(f"{run.run_id}: {run.data_sha256[:12]}" for run in runs),
        )


def _refuse_repeated(runs: Sequence[str], against: Sequence[str]) -> None:
    named = [*runs, *against]
    twice = sorted({name for name in named if named.count(name) > 1})
    if twice:
        raise OodatcaaError(
            "evaluate.repeated",
            f"named more than once: {', '.join(twice)}; a run counts as one seed",
            hint="oodatcaa runs lists them",
        )


def _refuse_incomparable(ours: Sequence[RunRecord], theirs: Sequence[RunRecord]) -> None:
    """A verdict is about two configurations on one model, with another seed for each run."""
    problems: list[str] = []
    everyone = (*ours, *theirs)
    if len({run.model_sha256 for run in everyone}) > 1:
        problems.append("the base models differ")
    reads = {
        (run.params.max_seq_length, run.params.mask_prompt, run.params.quantize_bits)
        for run in everyone
    }
    if len(reads) > 1:
        problems.append("max_seq_length, mask_prompt or quantize_bits differ")
    for side in (ours, theirs):
        seeds = [run.params.seed for run in side]
        if len(set(seeds)) < len(seeds):
            problems.append(f"seeds are repeated: {', '.join(map(str, seeds))}")
        if len({run.params.evolve(seed=0).model_dump_json() for run in side}) > 1:
            problems.append(f"{', '.join(run.run_id for run in side)} differ in more than the seed")
    if problems:
        raise OodatcaaError(
            "evaluate.not_comparable",
            f"no verdict is possible: {problems[0]}",
            hint="oodatcaa evaluate them without --against",
            details=tuple(problems),
        )


def _request(run: RunRecord, adapter: str, split: Split, examples: int | None) -> EvalRequest:
    return judgement(
        run.params,
        model=run.model,
        adapter_dir=adapter,
        data_dir=run.data_dir,
        split=split,
        examples=examples,
        memory_limit_bytes=run.memory_limit_bytes,
    )


def _answered(
    backend: TrainingBackend,
    run: RunRecord,
    adapter: str | None,
    tasks: tuple[GenerationTask, ...],
    max_tokens: int,
) -> TaskScores:
    prompts = tuple(task.prompt for task in tasks)
    probes = backend.infer(
        run.model, adapter, prompts, max_tokens, memory_limit_bytes=run.memory_limit_bytes
    )
    texts = [probe.generation.text for probe in probes]
    exact = [
        exact_match(text, task.expected)
        for text, task in zip(texts, tasks, strict=True)
        if task.expected is not None
    ]
    tested = [
        (text, task.test) for text, task in zip(texts, tasks, strict=True) if task.test is not None
    ]
    return TaskScores(
        exact_match=Score(passed=sum(exact), total=len(exact)) if exact else None,
        pass_at_1=pass_at_1(tested) if tested else None,
    )


def _verdict(a: tuple[RunEvaluation, ...], b: tuple[RunEvaluation, ...]) -> Comparison:
    tokens = b[0].losses.per_example_tokens
    try:
        if any(one.losses.per_example_tokens != tokens for one in (*a, *b)):
            raise ValueError("the runs do not count the same target tokens")
        return compare(
            [one.losses.per_example_adapter for one in a],
            [one.losses.per_example_adapter for one in b],
            tokens,
        )
    except ValueError as error:
        raise OodatcaaError(
            "evaluate.not_comparable", f"the losses can not be compared: {error}",
            hint="oodatcaa evaluate each run alone",
        ) from error  # fmt: skip
