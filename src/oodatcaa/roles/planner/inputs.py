"""Everything the planner may know. Gathered by the caller, so that planning itself is pure."""

from __future__ import annotations

from pydantic import PositiveInt

from oodatcaa.domain.base import NonEmpty, Record, Utc
from oodatcaa.domain.board import Board
from oodatcaa.domain.evidence import GateSpec
from oodatcaa.domain.memory import MemoryEstimate, ModelShape
from oodatcaa.domain.objective import Objective
from oodatcaa.domain.plan import Inventory
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.task import Story
from oodatcaa.domain.training import (
    BackendProbe,
    BackendTrial,
    DatasetRecord,
    InferenceProbe,
    Machine,
    RunRecord,
)


class ParamOption(Record):
    """One set of training parameters that the train story weighs; `estimate` is its memory."""

    key: NonEmpty
    title: NonEmpty
    params: QLoRA
    estimate: MemoryEstimate | None = None


class PlanInputs(Record):
    """The facts of one planning. What could not be found out is None or empty, never a guess."""

    story: Story
    board: Board
    objective: Objective
    now: Utc
    author: NonEmpty
    version: PositiveInt = 1
    quality_gates: tuple[GateSpec, ...] = ()
    inventory: Inventory
    probes: tuple[BackendProbe, ...] = ()
    trials: tuple[BackendTrial, ...] = ()
    """Of every listed backend that works here, when there is more than one."""
    machine: Machine
    shape: ModelShape | None = None
    model_error: str | None = None
    estimate: MemoryEstimate | None = None
    """Peak memory of training with `estimated_for`."""
    estimated_for: QLoRA | None = None
    """None = with `params`. `planned_params` says beforehand what a plan will train with."""
    inference: InferenceProbe | None = None
    measured_with: str = ""
    """The backend that `inference` and `estimate` come from; empty = `backend`."""
    params: QLoRA
    params_from: NonEmpty = "OBJECTIVE.md"
    backend: NonEmpty = "mlx"
    dataset: DatasetRecord | None = None
    profiled_speed: float | None = None
    """Tokens/s of the memory profile's short run, every token of its batches counted."""
    run: RunRecord | None = None
    run_dir: str = ""
    dependency_notes: tuple[str, ...] = ()
    plotting: bool = True
    """False = no plotting library here: the plan promises no plot and says so."""
    options: tuple[ParamOption, ...] = ()
    """What `options_for` proposed, with estimates; empty = the planner weighs them without."""

    @property
    def ceiling_bytes(self) -> int:
        """What a run can really have: the objective's limit, or the machine's memory if less."""
        return min(self.objective.memory_limit_bytes, self.machine.memory_bytes)
