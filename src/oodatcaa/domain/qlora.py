"""The parameters of one fine-tuning, the same for every backend."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from oodatcaa.domain.base import NonEmpty, Record


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
    batch_size: PositiveInt = Field(
        default=4, description="examples of one iteration; rows with packing"
    )
    grad_accumulation_steps: PositiveInt = Field(
        default=1, description="iterations per optimizer step"
    )
    max_seq_length: int = Field(
        default=512, ge=32, description="longer examples are cut off here (tokens)"
    )
    packing: bool = Field(
        default=False,
        description="rows of max_seq_length tokens filled with whole examples that do not see each "
        "other",
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
        description="recompute only N of the trained blocks; left out = every one",
    )
    dense_weights: bool = Field(
        default=False,
        description="multiply with float32 copies of the blocks' quantised weights that are kept: "
        "faster, more memory; of MLX on a CPU only",
    )
    cache_frozen: bool = Field(
        default=False,
        description="keep on disk what the blocks below the first trained one make of an example: "
        "later epochs and validations begin from it; of MLX only",
    )
    mask_prompt: bool = Field(
        default=True, description="loss on the answer alone, not on the prompt"
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**32,  # what numpy takes
        description="of the batches, the dropout and the initial adapter",
    )
    steps_per_report: PositiveInt = Field(
        default=1, description="iterations between two lines of metrics"
    )
    steps_per_eval: PositiveInt = Field(
        default=20, description="iterations between two looks at the valid split"
    )
    val_batches: int = Field(
        default=4,
        ge=-1,
        description="batches of one such look; -1 = the whole valid split, 0 = no look at all",
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
        default=0,
        ge=0,
        description="bytes that MLX's allocator may keep after a batch, of training or validation; "
        "more is given back, all of it: 0 = nothing is kept",
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
        """Examples per optimizer step; rows with `packing`."""
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
        """How many of so many trained blocks are computed again."""
        if not self.grad_checkpoint:
            return 0
        wanted = self.grad_checkpoint_layers
        return trained if wanted is None else min(wanted, trained)

    @property
    def checkpointing(self) -> str:
        """In words: `on`, `of 3 blocks`, or nothing."""
        if self.grad_checkpoint_layers is not None:
            count = self.grad_checkpoint_layers
            return f"of {count} blocks" if count > 1 else "of 1 block"
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
    def _selecting_takes_a_look(self) -> QLoRA:
        if self.selects and not self.val_batches:
            raise ValueError("select_best and early_stopping_patience need val_batches, not 0")
        return self

    @model_validator(mode="after")
    def _adam_has_no_weight_decay(self) -> QLoRA:
        if self.optimizer is Optimizer.ADAM and self.weight_decay:
            raise ValueError("optimizer adam has no weight decay; use adamw")
        return self
