"""The axolotl backend: CUDA only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from oodatcaa.domain.training import (
    BackendProbe,
    EvalRequest,
    EvalResult,
    InferenceProbe,
    MemoryEstimate,
    RunRecord,
    TrainProgress,
    TrainSpec,
)
from oodatcaa.errors import OodatcaaError
from oodatcaa.training.backend import Models
from oodatcaa.training.probes import FRAMEWORKS, probe_framework
from oodatcaa.training.runs import RunStore


class AxolotlBackend:
    """domain.ports.TrainingBackend that is looked at but does not train yet.

    Every request for work is refused; a choice of framework can compare its facts.
    """

    name = "axolotl"

    def __init__(self, runs: RunStore, models: Models) -> None:
        self.runs, self.models = runs, models

    def probe(self) -> BackendProbe:
        return probe_framework(self.name)

    def estimate(self, spec: TrainSpec) -> MemoryEstimate:  # noqa: ARG002
        raise self._unavailable()

    def forecast(self, spec: TrainSpec, *, budget: int = 0) -> MemoryEstimate:  # noqa: ARG002
        raise self._unavailable()

    def train(
        self,
        spec: TrainSpec,  # noqa: ARG002
        *,
        on_progress: Callable[[TrainProgress], None] | None = None,  # noqa: ARG002
        should_stop: Callable[[], bool] | None = None,  # noqa: ARG002
    ) -> RunRecord:
        raise self._unavailable()

    def evaluate(self, request: EvalRequest) -> EvalResult:  # noqa: ARG002
        raise self._unavailable()

    def infer(
        self,
        model: str,  # noqa: ARG002
        adapter_dir: str | None,  # noqa: ARG002
        prompts: Sequence[str],  # noqa: ARG002
        max_tokens: int,  # noqa: ARG002
    ) -> tuple[InferenceProbe, ...]:
        raise self._unavailable()

    def _unavailable(self) -> OodatcaaError:
        found = self.probe()
        framework = FRAMEWORKS[self.name]
        state = found.problem or "it is installed, but training with it is not built in yet"
        return OodatcaaError(
            "backend.unavailable",
            f"backend {self.name} can not be used here: {state}",
            hint=f"use backend mlx; what it would need: {framework.install}",
        )
