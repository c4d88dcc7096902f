"""The axolotl backend from outside: the same gate, records and judge; the work is axolotl's own."""

from __future__ import annotations

from collections.abc import Callable

from oodatcaa.domain.memory import MemoryEstimate
from oodatcaa.domain.training import TrainSpec
from oodatcaa.training.backend import PROBE_TOKENS, ChildBackend
from oodatcaa.training.frameworks import AXOLOTL


class AxolotlBackend(ChildBackend):
    """domain.ports.TrainingBackend. What it trains is PEFT's, so backend hf judges it."""

    framework = AXOLOTL

    def child(self, work: str) -> str:
        return f"axolotl.{work}" if work == "worker" else f"hf.{work}"

    def estimate(self, spec: TrainSpec) -> MemoryEstimate:
        return _unmeasured(super().estimate(spec))

    def forecast(
        self,
        spec: TrainSpec,
        *,
        budget: int = PROBE_TOKENS,  # noqa: ARG002 - axolotl has no door for a probe
        should_stop: Callable[[], bool] | None = None,  # noqa: ARG002
    ) -> MemoryEstimate:
        """The analytic estimate: no step of axolotl is measured beforehand."""
        return self.estimate(spec)


def _unmeasured(estimate: MemoryEstimate) -> MemoryEstimate:
    return estimate.evolve(
        method=f"{estimate.method}; never compared with a run of axolotl",
        unknown=(*estimate.unknown, "what axolotl holds on the card beside the model"),
    )
