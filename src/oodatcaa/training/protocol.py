"""What the training parent and its children say to each other, through files in one folder.

A child is `python -m oodatcaa.training.<backend>.<child> <folder>`. It reads its request from the
folder, writes its result there atomically, and says with its exit code whether to look for one.
This module imports no framework: both sides share it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from oodatcaa.domain.base import NonEmpty, Record, Utc
from oodatcaa.domain.memory import MemoryStop
from oodatcaa.domain.training import (
    GB,
    InferenceProbe,
    LossPoint,
    Machine,
    RunFailure,
    RunStatus,
    TrainSpec,
)

SPEC_FILE = "spec.json"
"""TrainSpec, the worker's request."""
REQUEST_FILE = "request.json"
"""The request of every child but the worker."""
RESULT_FILE = "result.json"
"""WorkerResult, EvalResult or InferResult; or `{"error": ChildError}`."""
PROGRESS_FILE = "progress.json"
METRICS_FILE = "metrics.jsonl"
MEMORY_FILE = "memory.jsonl"
TRAIN_LOG = "train.log"
CHILD_LOG = "child.log"
LORA_CONFIG_FILE = "lora_config.yaml"
ADAPTERS_DIR = "adapters"
ADAPTER_FILE = "adapters.safetensors"
PEFT_ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
CHECKPOINTS_DIR = "checkpoints"


def adapter_weights(folder: Path) -> Path:
    """The adapter's tensors in `folder`: mlx-lm's file, or PEFT's where that one is there."""
    peft = folder / PEFT_ADAPTER_FILE
    return peft if peft.is_file() else folder / ADAPTER_FILE


FAST_CPU = "OODATCAA_FAST_CPU"
"""Set to 0 in a child's environment by `training.fast_cpu = false`."""


def fast_cpu_wanted() -> bool:
    """Whether this process may take the CPU speed path."""
    return os.environ.get(FAST_CPU, "1") != "0"


STOP_FILE = "memory_stop.json"
"""StopNote, written by a child that ended itself at the limit."""
WALL_FILE = "memory_wall.json"
"""WallNote, written by a child once the kernel's limit is in force."""
PROBE_DIR = "probe"

EXIT_OK = 0
EXIT_DESCRIBED = 3
"""The child failed and result.json says why; any other non-zero code is a crash."""
EXIT_MEMORY = 4
EXIT_BLIND = 5
"""The memory guard in the child could not look any more."""
"""The child ended itself at the memory limit; memory_stop.json has the numbers."""


class ChildError(Record):
    """Why a child could not answer; `code` is stable, `hint` names the next command."""

    code: NonEmpty
    message: NonEmpty
    hint: str = ""
    details: tuple[str, ...] = ()


class WallNote(Record):
    """The limits that a child has put on itself; `kernel_bytes` is None where there is none."""

    limit_bytes: int
    kernel_bytes: int | None


class StopNote(Record):
    """What a child measured when it ended itself."""

    stop: MemoryStop
    mlx_bytes: int = Field(description="the framework's memory with its allocator's cache")
    process_bytes: int
    limit_bytes: int
    longest_gap: float = Field(default=0.0, description="seconds between two of its looks")


class ProbeSize(Record):
    """One batch to measure: `targets` of its `batch * length` positions carry loss."""

    batch: PositiveInt
    length: PositiveInt
    targets: PositiveInt


class ProbeRequest(Record):
    """Load the spec's model and train a few steps of one size, evaluation and saving too."""

    spec: TrainSpec
    size: ProbeSize
    vocab_size: PositiveInt


class ProbePoint(Record):
    """Peaks of one size in bytes: the framework's counter with its cache, and the process."""

    size: ProbeSize
    mlx_bytes: int
    process_bytes: int
    step_seconds: float


class ProbeResult(Record):
    """`loaded` is the peak of loading and preparing the model, whatever is trained afterwards."""

    point: ProbePoint
    loaded_mlx_bytes: int
    loaded_process_bytes: int
    loss: str = Field(description="which loss path the worker took for this model")
    versions: dict[str, str]
    machine: Machine


class WorkerResult(Record):
    """result.json of the training worker. A value that was not measured is None, never 0."""

    status: RunStatus
    failure: RunFailure | None = None
    iterations_done: int = Field(ge=0, description="micro-steps, counted from the very first one")
    optimizer_steps: int = Field(ge=0)
    trained_tokens: int = Field(ge=0, description="target tokens of this process's micro-steps")
    tokens_per_second: float | None = Field(
        description="target tokens over the time of the micro-steps, without loading and validation"
    )
    mlx_peak_bytes: int | None
    train_losses: tuple[LossPoint, ...] = ()
    valid_losses: tuple[LossPoint, ...] = ()
    adapter_sha256: str | None = None
    adapter_iteration: int | None = None
    stopped_early: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    machine: Machine | None = None
    dropped_examples: dict[str, int] = Field(
        default_factory=dict, description="reason -> training examples that carry no loss"
    )
    notes: tuple[str, ...] = ()


class TrainMetric(Record):
    """One line of metrics.jsonl for a training micro-step (or the mean of a report interval)."""

    kind: Literal["train"] = "train"
    iteration: int
    loss: float
    learning_rate: float
    tokens: int = Field(description="target tokens since the previous line")
    tokens_per_second: float
    mlx_peak_bytes: int = Field(
        description="the framework's own; the process's where it counts nothing (torch on a CPU)"
    )
    mlx_active_bytes: int
    at: Utc


class ValidMetric(Record):
    """One line of metrics.jsonl for a pass over the valid split."""

    kind: Literal["valid"] = "valid"
    iteration: int
    loss: float
    at: Utc


class InferRequest(Record):
    """Load a model, with or without an adapter, and answer chat user messages one by one."""

    model: NonEmpty
    adapter_dir: str | None = None
    prompts: tuple[NonEmpty, ...]
    max_tokens: PositiveInt = 128
    memory_limit_bytes: PositiveInt = 16 * GB
    temperature: float = Field(default=0.0, ge=0.0, description="0 = greedy")
    seed: int = Field(default=0, ge=0)


class InferResult(Record):
    """One probe for each prompt, in the request's order."""

    probes: tuple[InferenceProbe, ...]
