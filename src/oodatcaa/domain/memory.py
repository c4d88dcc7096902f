"""What a training needs to hold, and the gate that it stands before: a model's shape, an estimate,
the layers that stop. All sizes are bytes."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field, PositiveInt

from oodatcaa.domain.base import NonEmpty, Record


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
        default=False, description="mlx-lm's logits are computed for every position"
    )
    changed_logits: bool = Field(default=False, description="something follows the output layer")
    capped_logits: bool = Field(default=False, description="it is a soft cap")
    other_parameters: int = Field(
        default=0, ge=0, description="for pictures and sound: mlx-lm does not load them"
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
