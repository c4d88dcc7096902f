"""What steps leave for later steps and stories, stored under the story's facts."""

from __future__ import annotations

from oodatcaa.domain.base import NonEmpty, Record
from oodatcaa.domain.memory import MemoryEstimate
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import (
    BackendProbe,
    DatasetRecord,
    EvalResult,
    InferenceProbe,
    Machine,
)

FRAMEWORKS = "frameworks"
INFERENCE = "inference"
PROFILE = "profile"
DATASET = "dataset"
TRAINING = "training"
EVALUATION = "evaluation"
GENERATIONS = "generations"


class FrameworkFacts(Record):
    probes: tuple[BackendProbe, ...]
    machine: Machine


class InferenceFacts(Record):
    probe: InferenceProbe


class ProfileFacts(Record):
    """The estimate for the plan's parameters, and a short measured probe beside its own estimate.

    The probe trains for real, but at `probe_params` (fewer tokens on a CPU): the ratio of measured
    to estimated there tells how far the estimate for the full shape can be trusted.
    """

    params: QLoRA
    estimate: MemoryEstimate
    limit_bytes: int
    fits: bool
    probe_params: QLoRA | None = None
    probe_estimate: MemoryEstimate | None = None
    probe_peak_bytes: int | None = None
    probe_run: str = ""
    probe_tokens_per_second: float | None = None
    """Of the probe's steps, every token of its batches counted."""


class DatasetFacts(Record):
    dataset: DatasetRecord
    problems: tuple[str, ...] = ()


class TrainingFacts(Record):
    run_id: NonEmpty
    run_dir: NonEmpty
    adapter_dir: NonEmpty
    estimate: MemoryEstimate
    dataset: DatasetRecord


class EvaluationFacts(Record):
    result: EvalResult
    run_id: NonEmpty
    adapter_dir: NonEmpty


class GenerationFacts(Record):
    """One held-out prompt, answered by the base model and by the adapter."""

    prompt: NonEmpty
    base: InferenceProbe
    tuned: InferenceProbe
