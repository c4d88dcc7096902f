"""What an adaptation comes to: the next plan version's parameters, or no way on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from oodatcaa.domain.base import NonEmpty, Record
from oodatcaa.domain.memory import MemoryEstimate
from oodatcaa.domain.plan import AdaptationNote
from oodatcaa.domain.qlora import QLoRA

Estimator = Callable[[QLoRA, str], MemoryEstimate]
"""(params, backend) -> what a training step of that backend would need at its peak."""


class Adaptation(Record):
    """What the next plan version changes. `params` and `backend` are complete, not a difference;
    `note` says what was changed and why, for the plan."""

    kind: Literal["memory", "start_over", "metric"]
    params: QLoRA
    backend: NonEmpty
    note: AdaptationNote

    @property
    def start_over(self) -> bool:
        """Nothing changed: every build is to be done again."""
        return self.kind == "start_over"


class GiveUp(Record):
    """Nothing more can be adapted; `reason` is what the person reads."""

    reason: NonEmpty
    tried: tuple[NonEmpty, ...] = ()
    hint: str = ""
