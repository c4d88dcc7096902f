"""What is trained, what it may cost, and what came out: the records every backend shares.

All sizes are bytes, all durations seconds, all losses mean negative log likelihood in nats per
target token. An *iteration* is one micro-step (one batch forward and backward, as in mlx-lm);
an *optimizer step* happens every `grad_accumulation_steps` iterations and after the last one, with
the gradient of the mean loss over all target tokens since the one before.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from oodatcaa.domain.base import GB as GB
from oodatcaa.domain.base import NonEmpty, Record, Sha256, Utc


class LrSchedule(StrEnum):
    CONSTANT = "constant"
    COSINE = "cosine"
    LINEAR = "linear"


class FineTune(StrEnum):
    """What is trained: low-rank updates, weight-decomposed ones (Liu et al. 2024), or weights."""

    LORA = "lora"
    DORA = "dora"
    FULL = "full"


class Optimizer(StrEnum):
    """The optimizers that mlx-lm's configuration offers."""

    ADAM = "adam"
    ADAMW = "adamw"
    SGD = "sgd"
    ADAFACTOR = "adafactor"
    MUON = "muon"


class QLoRA(Record):
    """The parameters of one fine-tuning; rank, alpha, dropout and keys mean nothing for `full`.

    `alpha` is the paper's (Hu et al. 2021, section 4.1): the update is `alpha / rank * B A x`.
    mlx-lm calls the quotient `scale` and takes it directly; see the `scale` property.
    """

    fine_tune_type: FineTune = Field(
        default=FineTune.LORA, description="what is trained beside or inside the base weights"
    )
    optimizer: Optimizer = Field(default=Optimizer.ADAMW, description="the optimizer of MLX")
    rank: PositiveInt = Field(default=16, description="rank of the low-rank update")
    alpha: PositiveFloat = Field(default=32.0, description="the update is scaled by alpha / rank")
    dropout: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="dropout on the input of the adapter"
    )
    num_layers: int = Field(default=8, ge=-1, description="last N transformer blocks; -1 = all")
    keys: tuple[NonEmpty, ...] | None = Field(
        default=None, description="module names inside a block; left out = every linear layer"
    )
    batch_size: PositiveInt = Field(default=4, description="examples of one iteration")
    grad_accumulation_steps: PositiveInt = Field(
        default=1, description="iterations per optimizer step"
    )
    max_seq_length: int = Field(
        default=512, ge=32, description="longer examples are cut off here (tokens)"
    )
    iters: PositiveInt = Field(
        default=40, description="micro-steps, as in mlx-lm: one batch forward and backward each"
    )
    learning_rate: PositiveFloat = Field(default=3e-4, description="peak learning rate of AdamW")
    schedule: LrSchedule = Field(
        default=LrSchedule.CONSTANT, description="course of the learning rate after the warm-up"
    )
    warmup_steps: int = Field(
        default=0, ge=0, description="optimizer steps until the learning rate is reached"
    )
    weight_decay: float = Field(default=0.0, ge=0.0, description="decoupled weight decay of AdamW")
    grad_checkpoint: bool = Field(
        default=False,
        description="recompute activations in the backward pass: less memory, more time",
    )
    grad_checkpoint_layers: PositiveInt | None = Field(
        default=None,
        description="recompute only the lowest N trained blocks; left out = every one",
    )
    mask_prompt: bool = Field(
        default=True, description="loss on the answer alone, not on the prompt"
    )
    seed: int = Field(
        default=0, ge=0, description="of the batches, the dropout and the initial adapter"
    )
    steps_per_report: PositiveInt = Field(
        default=1, description="iterations between two lines of metrics"
    )
    steps_per_eval: PositiveInt = Field(
        default=20, description="iterations between two looks at the valid split"
    )
    val_batches: int = Field(
        default=4, ge=-1, description="batches of one such look; -1 = the whole valid split"
    )
    save_every: PositiveInt = Field(default=10, description="iterations between two checkpoints")
    keep_checkpoints: PositiveInt = Field(default=2, description="the newest ones, and the best")
    select_best: bool = Field(
        default=False, description="the adapter is that of the best validation, not the last one"
    )
    early_stopping_patience: PositiveInt | None = Field(
        default=None, description="stop after so many validations that were not better"
    )
    early_stopping_min_delta: float = Field(
        default=0.0, ge=0.0, description="by how much a better validation loss is lower"
    )
    clear_cache_threshold: int = Field(
        default=0, ge=0, description="bytes the allocator's cache may hold between steps; 0 = any"
    )
    quantize_bits: Literal[2, 3, 4, 6, 8] | None = Field(
        default=None, description="re-quantise the base model; left out = as it comes"
    )

    @property
    def scale(self) -> float:
        """alpha / rank, the factor on the low-rank update (mlx-lm's `scale`)."""
        return self.alpha / self.rank

    @property
    def effective_batch(self) -> int:
        """Examples per optimizer step."""
        return self.batch_size * self.grad_accumulation_steps

    @property
    def selects(self) -> bool:
        """Whether the validation split decides which weights are kept."""
        return self.select_best or self.early_stopping_patience is not None

    @property
    def optimizer_steps(self) -> int:
        return self.steps_after(self.iters)

    def steps_after(self, iterations: int) -> int:
        """Optimizer steps once so many iterations are done."""
        whole, rest = divmod(iterations, self.grad_accumulation_steps)
        return whole + (rest > 0 and iterations == self.iters)

    def recomputed(self, trained: int) -> int:
        """How many of so many trained blocks, counted from the lowest, are computed again."""
        if not self.grad_checkpoint:
            return 0
        wanted = self.grad_checkpoint_layers
        return trained if wanted is None else min(wanted, trained)

    @property
    def checkpointing(self) -> str:
        """In words: `on`, `of the lowest 3 blocks`, or nothing."""
        if self.grad_checkpoint_layers is not None:
            count = self.grad_checkpoint_layers
            return f"of the lowest {count} blocks" if count > 1 else "of the lowest block"
        return "on" if self.grad_checkpoint else ""

    def trained_blocks(self, blocks: int) -> int:
        """How many of a model's `blocks` are trained."""
        return blocks if self.num_layers < 0 else min(self.num_layers, blocks)

    @model_validator(mode="after")
    def _layers_of_nothing(self) -> QLoRA:
        if self.grad_checkpoint_layers is not None and not self.grad_checkpoint:
            raise ValueError("grad_checkpoint_layers needs grad_checkpoint: true")
        return self

    @model_validator(mode="after")
    def _adam_has_no_weight_decay(self) -> QLoRA:
        if self.optimizer is Optimizer.ADAM and self.weight_decay:
            raise ValueError("optimizer adam has no weight decay; use adamw")
        return self


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


class Matrix(Record):
    """A linear layer of a block: `rows` outputs, `columns` inputs, unpacked."""

    name: NonEmpty
    rows: PositiveInt
    columns: PositiveInt


class BlockShape(Record):
    """One transformer block as its tensors show it."""

    matrices: tuple[Matrix, ...]
    parameters: int
    unknown: tuple[str, ...] = Field(
        default=(), description="tensors of more than two axes: experts, convolutions"
    )


class ModelShape(Record):
    """What an estimate needs to know of a model, read from config.json and tensor headers."""

    model_type: str
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    head_dim: PositiveInt
    vocab_size: PositiveInt
    tied_embeddings: bool
    weight_bytes: PositiveInt = Field(description="sum of all tensors as stored")
    parameters: PositiveInt
    bits: int | None = Field(description="quantisation of the linear layers; None = not quantised")
    group_size: int | None = None
    blocks: tuple[BlockShape, ...] = Field(
        default=(), description="from the tensors; empty = a Llama-like block is assumed"
    )
    dense_logits: bool = Field(
        default=False, description="something follows the output layer: every position is computed"
    )
    tokenizer_bytes: int = Field(default=0, description="size of tokenizer.json")


class MemoryPart(Record):
    name: NonEmpty
    bytes: int = Field(ge=0)
    formula: str


class MemoryEstimate(Record):
    """An estimate, labelled as one: the parts that add up to a training step's peak.

    `total_bytes` is the peak of the process tree, which is what the memory gate compares with the
    limit; `mlx_peak_bytes` is the part of it that MLX's own counter will show.
    """

    total_bytes: int
    parts: tuple[MemoryPart, ...]
    device: str
    method: str = Field(description="one line: what the numbers are derived from")
    mlx_peak_bytes: int | None = None
    source: Literal["analytic", "probe"] = "analytic"
    unknown: tuple[str, ...] = Field(
        default=(), description="what the formulas do not cover: `total_bytes` is a lower bound"
    )


class MemoryLayer(StrEnum):
    """Where the memory gate stopped a run."""

    BEFORE = "before"
    DURING = "during"
    AFTER = "after"


class MemoryStop(StrEnum):
    """Which wall a run stood before: the layer's precise name.

    `preflight` refused to start it; `step` is the run's own check, after every step and by a
    thread that samples in between; `watcher` looks at the process tree from outside; `kernel`
    is the operating system's limit, the last line.
    """

    PREFLIGHT = "preflight"
    STEP = "step"
    WATCHER = "watcher"
    KERNEL = "kernel"


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


class EvalRequest(Record):
    """Compare a base model with an adapter on one split, example by example."""

    model: NonEmpty
    adapter_dir: str | None
    data_dir: NonEmpty
    split: Literal["valid", "test"] = "test"
    max_examples: PositiveInt | None = None
    max_seq_length: PositiveInt = 2048
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
