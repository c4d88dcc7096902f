"""What is trained, what it may cost, and what came out: the records every backend shares.

All sizes are bytes, all durations seconds, all losses mean negative log likelihood in nats per
target token. An *iteration* is one micro-step (one batch forward and backward, as in mlx-lm);
an *optimizer step* happens every `grad_accumulation_steps` iterations and after the last one, with
the gradient of the mean loss over all target tokens since the one before.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from oodatcaa.domain.base import GB as GB
from oodatcaa.domain.base import NonEmpty, Record, Sha256, Utc
from oodatcaa.domain.memory import MemoryEstimate, MemoryLayer, MemoryStop
from oodatcaa.domain.qlora import QLoRA


class TrainSpec(Record):
    """Everything a training child needs; stored as spec.json beside its results and never edited.

    `model` is a local mlx-lm folder (absolute path) or a hub name; `data_dir` holds
    train.jsonl, valid.jsonl and test.jsonl.
    """

    backend: NonEmpty = "mlx"
    model: NonEmpty
    model_name: str = Field(default="", description="what people call it, for reports")
    data_dir: NonEmpty
    data_sha256: str = ""
    params: QLoRA
    memory_limit_bytes: PositiveInt = 16 * GB
    git_sha: str = ""
    git_dirty: bool = False
    story: str = ""
    task: str = ""
    attempt: int = 0
    resume_from: str | None = Field(default=None, description="checkpoint folder to continue from")
    start_iteration: int = Field(default=0, ge=0)


class RunStatus(StrEnum):
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"


class FailureKind(StrEnum):
    MEMORY_GATE = "memory_gate"
    NOT_FINITE = "not_finite"
    CRASH = "crash"
    KILLED = "killed"
    DISK_FULL = "disk_full"
    BAD_INPUT = "bad_input"
    INTERRUPTED = "interrupted"


class RunFailure(Record):
    kind: FailureKind
    message: NonEmpty
    layer: MemoryLayer | None = None
    stop: MemoryStop | None = None
    needed_bytes: int | None = None
    limit_bytes: int | None = None
    hint: str = ""


class LossPoint(Record):
    iteration: int
    loss: float


class Machine(Record):
    host: str
    system: str
    processor: str
    cpu_count: int
    memory_bytes: int
    accelerator: str = Field(description="metal, cuda or cpu")
    blas: str = Field(default="", description="the BLAS preloaded for the CPU device, if any")


class RunRecord(Record):
    """run.json. The first nine keys are those of the run-storage plan this project started from."""

    started_at: Utc
    git_sha: str
    data_dir: str
    model: str
    lora_rank: int
    lora_alpha: float
    iters: int
    batch_size: int
    learning_rate: float

    run_id: NonEmpty = Field(description="folder name, for example 2026-01-30_12-00-00")
    backend: NonEmpty
    status: RunStatus
    finished_at: Utc | None = None
    git_dirty: bool = False
    data_sha256: str = ""
    model_sha256: str = ""
    params: QLoRA
    optimizer_steps: int = 0
    versions: dict[str, str] = Field(default_factory=dict)
    machine: Machine | None = None
    failure: RunFailure | None = None
    memory_limit_bytes: int
    estimated_peak_bytes: int | None = None
    peak_memory_bytes: int | None = Field(
        default=None,
        description="largest of the process tree's samples and MLX's own peak, in this run and in "
        "those that it went on from",
    )
    mlx_peak_bytes: int | None = None
    process_peak_bytes: int | None = None
    control_group: bool = Field(
        default=False, description="whether the kernel held the run at exactly its limit"
    )
    longest_unwatched_seconds: float | None = Field(
        default=None, description="the longest time between two looks of the memory watcher"
    )
    trained_tokens: int | None = None
    tokens_per_second: float | None = None
    iterations_done: int = 0
    stopped_early: str = Field(default="", description="why it ended before its last iteration")
    adapter_iteration: int | None = Field(
        default=None, description="the iteration whose weights the adapter holds"
    )
    train_losses: tuple[LossPoint, ...] = ()
    valid_losses: tuple[LossPoint, ...] = ()
    adapter_sha256: str | None = None
    resumed_from: str | None = Field(default=None, description="run id this one went on from")
    start_iteration: int = Field(default=0, description="iterations that earlier runs had done")
    story: str = ""
    task: str = ""
    attempt: int = 0

    @property
    def seconds_per_iteration(self) -> float | None:
        """Wall time per micro-step, loading and validating included; None before it ended."""
        own = self.iterations_done - self.start_iteration
        if self.finished_at is None or own <= 0:
            return None
        return (self.finished_at - self.started_at).total_seconds() / own


class TrainProgress(Record):
    """progress.json in the run folder: what a person watching wants to know right now."""

    run_id: str
    phase: Literal["loading", "training", "validating", "saving", "finished", "failed"]
    iteration: int = 0
    iters: int = 0
    loss: float | None = None
    valid_loss: float | None = None
    tokens_per_second: float | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int
    updated_at: Utc


class SplitStats(Record):
    examples: int
    files: int
    tokens_min: int | None = None
    tokens_mean: float | None = None
    tokens_p95: int | None = None
    tokens_max: int | None = None
    sha256: Sha256


class DatasetRecord(Record):
    """The data card's numbers; `path` is models/data/<first 16 hex digits of sha256>/."""

    name: NonEmpty
    path: NonEmpty
    sha256: Sha256
    source: NonEmpty
    licence: NonEmpty
    seed: int = 0
    splits: dict[str, SplitStats]
    dropped: dict[str, int] = Field(default_factory=dict, description="reason -> count")
    tokenizer: str = Field(default="", description="the model whose tokenizer counted the tokens")

    @property
    def longest(self) -> int | None:
        """Tokens of the longest example over all splits; None when nothing was tokenised."""
        lengths = [s.tokens_max for s in self.splits.values()]
        return (
            None if any(n is None for n in lengths) else max((n or 0 for n in lengths), default=0)
        )


class DataFindings(Record):
    """Each is `file:line: reason`. Problems make data unfit for training; warnings are for a person
    to look at; `not_checked` says what nothing was found out about, and why."""

    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    not_checked: tuple[str, ...] = ()

    @property
    def fit(self) -> bool:
        return not self.problems

    def to_look_at(self, most: int = 20) -> tuple[str, ...]:
        """Everything but the problems, a line each; of the warnings at most so many."""
        lines = [f"warning: {text}" for text in self.warnings[:most]]
        if (more := len(self.warnings) - most) > 0:
            lines.append(f"{more} more warnings: oodatcaa data check shows them all")
        return (*lines, *(f"not checked: {text}" for text in self.not_checked))


JUDGED_LENGTH = 2048
"""Tokens that a judge reads of an example at least, however short the training's are cut."""


class EvalRequest(Record):
    """Compare a base model with an adapter on one split, example by example."""

    model: NonEmpty
    adapter_dir: str | None
    data_dir: NonEmpty
    split: Literal["valid", "test"] = "test"
    max_examples: PositiveInt | None = None
    max_seq_length: PositiveInt = JUDGED_LENGTH
    mask_prompt: bool = True
    quantize_bits: Literal[2, 3, 4, 6, 8] | None = None
    bootstrap_samples: PositiveInt = 2000
    seed: int = 0
    memory_limit_bytes: PositiveInt = 16 * GB


class EvalResult(Record):
    """Losses recomputed from the artefacts. A value that could not be computed is None, never 0.

    `drop` is base_loss - adapter_loss over all target tokens; the interval is a paired bootstrap
    over examples (Efron & Tibshirani 1993, chapter 13), percentile method, 95 %.
    """

    split: str
    examples: int
    target_tokens: int
    dropped_examples: int = Field(
        default=0, description="asked for, but their prompt fills max_seq_length"
    )
    lost_tokens: int = Field(default=0, description="beyond max_seq_length, of all asked for")
    base_loss: float | None
    adapter_loss: float | None
    drop: float | None
    drop_low: float | None
    drop_high: float | None
    per_example_base: tuple[float, ...] = ()
    per_example_adapter: tuple[float, ...] = ()
    per_example_tokens: tuple[int, ...] = ()
    evaluator_sha256: Sha256
    data_sha256: str = ""
    adapter_sha256: str | None = None
    peak_memory_bytes: int | None = None
    seconds: float

    @property
    def unseen(self) -> str:
        """What the losses say nothing about, in words; "" when that is nothing."""
        found = []
        if count := self.dropped_examples:
            found.append(f"{count} example{'s' * (count > 1)} whose prompt fills max_seq_length")
        if count := self.lost_tokens:
            found.append(f"{count} token{'s' * (count > 1)} beyond max_seq_length")
        return "; ".join(found)


class Generation(Record):
    prompt: str
    text: str
    tokens: int
    tokens_per_second: float


class InferenceProbe(Record):
    """A model loaded in a child process and asked for a few tokens."""

    model: str
    load_seconds: float
    prompt_tokens: int
    generation: Generation
    peak_memory_bytes: int
    device: str


class BackendProbe(Record):
    """Facts about one training framework on this machine; never an opinion."""

    name: NonEmpty
    title: NonEmpty
    importable: bool
    version: str | None = None
    accelerator: str | None = None
    notes: tuple[str, ...] = ()
    problem: str | None = Field(default=None, description="why it can not be used here, if so")

    @property
    def usable(self) -> bool:
        """Whether it can train here, as far as a look tells."""
        return self.importable and self.problem is None


class BackendTrial(Record):
    """A backend's real training steps on small batches, the same for every backend that is tried.

    `tokens_per_second` counts the tokens of those batches, None where no step was made, and
    `problem` says why; `needed` is what the asked parameters will take with this backend.
    """

    name: NonEmpty
    batch: PositiveInt
    length: PositiveInt
    tokens_per_second: PositiveFloat | None = None
    needed: MemoryEstimate | None = None
    problem: str | None = None
