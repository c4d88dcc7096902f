"""What a role finds on its desk: the ports it may use, wired by `app`, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol, TypeVar

from oodatcaa.domain.agents import AgentDefinition, Turn
from oodatcaa.domain.base import Record
from oodatcaa.domain.board import Board
from oodatcaa.domain.draft import DraftStory
from oodatcaa.domain.evidence import Evidence, GateSpec
from oodatcaa.domain.memory import ModelShape
from oodatcaa.domain.objective import Objective
from oodatcaa.domain.plan import Inventory, Plan
from oodatcaa.domain.ports import TrainingBackend
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.report import Action, Deliverable, Metric
from oodatcaa.domain.source import Source
from oodatcaa.domain.task import Artefact, Failure, Subtask
from oodatcaa.domain.training import (
    DataFindings,
    DatasetRecord,
    Machine,
    RunRecord,
    TrainProgress,
    TrainSpec,
)
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.process import NO_LIMITS, Limits

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class ModelPlace:
    """A model that is on this machine: an mlx-lm folder, its content hash and its name."""

    name: str
    path: str
    sha256: str
    licence: str = ""


class Models(Protocol):
    def place(self, name: str) -> ModelPlace:
        """Raises OodatcaaError when the model is unknown or can not be had here."""
        ...

    def shape(self, path: str) -> ModelShape: ...


class Datasets(Protocol):
    def build(
        self, source: str, *, model_path: str, params: QLoRA, say: Callable[[str], None]
    ) -> DatasetRecord:
        """The demo's data, or the user's folder, fit for a training with `params`, hashed, in the
        data store. Says what there is to look at.

        Raises OodatcaaError listing every problem.
        """
        ...

    def examine(self, path: str, *, model_path: str, params: QLoRA) -> DataFindings:
        """Everything wrong with, or odd about, a data folder for a training with `params`."""
        ...

    def longest(self, source: str, model_path: str) -> int | None:
        """Tokens of the longest example when the data is there to be measured, else None."""
        ...

    def write_probe(self, folder: Path, examples: int, tokens: int) -> str:
        """Made-up examples of at least `tokens` tokens each, for a memory probe; the folder."""
        ...


class Runs(Protocol):
    def folder(self, run_id: str) -> Path: ...

    def read(self, run_id: str) -> RunRecord: ...

    def resumed(self, spec: TrainSpec) -> tuple[TrainSpec, str] | None:
        """The same training going on from the furthest checkpoint of an interrupted run, and that
        run's id; None when there is nothing to go on from."""
        ...

    def plot(self, run_id: str, path: Path) -> bool:
        """Write the loss-and-memory plot; False when no plotting library is installed."""
        ...


class Facts(Protocol):
    """Records that one subtask leaves for the next ones: `.oodatcaa/work/facts/<story>/`."""

    def put(self, story: str, name: str, record: Record) -> None: ...

    def get(self, story: str, name: str, kind: type[R]) -> R | None: ...


class Workspace(Protocol):
    """The story's worktree on its branch. Only a builder's steps write here."""

    @property
    def path(self) -> Path: ...

    def head(self) -> str: ...

    def changed(self) -> bool:
        """Whether anything in it is not committed yet."""
        ...

    def commit(self, paths: Sequence[str], message: str) -> str | None:
        """Commit these files; None when nothing changed."""
        ...


class Agents(Protocol):
    """External agents, for one claim. What they say counts for nothing until it is checked."""

    @property
    def output_retries(self) -> int:
        """How often invalid output may go back to an agent."""
        ...

    def acting(self) -> AgentDefinition:
        """Who this desk's agent is."""
        ...

    def external(self, wanted: str = "") -> AgentDefinition | None:
        """The external agent for work that nothing built in can do; None when there is none."""
        ...

    def builder(self, wanted: str = "") -> AgentDefinition | None:
        """The external builder that a plan's step would get; None when there is none."""
        ...

    def call(
        self,
        definition: AgentDefinition,
        prompt: str,
        *,
        cwd: Path,
        step: int = 0,
        session: str = "",
    ) -> Turn:
        """One call to its end, with retries after the agent's errors, inside every budget."""
        ...

    def session_of(self, definition: AgentDefinition, step: int) -> str:
        """The session to go on with for this story's step; empty = a new one."""
        ...

    def note(self, text: str, details: tuple[str, ...] = ()) -> None:
        """Something for the history that moves no task."""
        ...


def _silent(_: str) -> None:
    return None


def _never() -> bool:
    return False


def _no_rehearsal(_: Path) -> dict[str, str]:
    return {}


def _no_checkout() -> Path:
    raise OodatcaaError(
        "desk.no_checkout", "there is no checkout in which an agent may look around"
    )


@dataclass(frozen=True)
class Desk:
    """Everything a built-in role works with."""

    agent: str
    objective: Objective
    backends: Mapping[str, TrainingBackend]
    probers: Mapping[str, TrainingBackend]
    models: Models
    datasets: Datasets
    runs: Runs
    facts: Facts
    machine: Machine
    quality_gates: tuple[GateSpec, ...]
    profile_tokens: int
    now: Callable[[], datetime]
    plan_of: Callable[[str], Plan | None]
    plan_version: Callable[[str, int], Plan]
    inventory: Callable[[], Inventory]
    read_board: Callable[[], Board]
    git_state: Callable[[], tuple[str, bool]]
    scratch: Path
    say: Callable[[str], None] = _silent
    on_progress: Callable[[TrainProgress], None] | None = None
    should_stop: Callable[[], bool] = _never
    can_plot: bool = True
    verify: Callable[[tuple[GateSpec, ...], Plan, Subtask, str], tuple[Evidence, ...]] | None = None
    draft_of: Callable[[Source], DraftStory] | None = None
    pins: Callable[[], dict[str, str]] = field(default=dict)
    agents: Agents | None = None
    checkout: Callable[[], Path] = _no_checkout
    """Where agents that only look may work: a checkout of the target branch of their own."""
    command_limits: Limits = NO_LIMITS
    rehearsal: Callable[[Path], dict[str, str]] = _no_rehearsal
    """Copies the queue to a folder; the variables under which it stands for the live one."""


@dataclass(frozen=True)
class StepOutcome:
    """What one step did. `failure` set = the step failed and the subtask goes to needs_adapt."""

    facts: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    artefacts: tuple[Artefact, ...] = ()
    metrics: tuple[Metric, ...] = ()
    failure: Failure | None = None


@dataclass(frozen=True)
class BuildResult:
    """A builder's proposal: the commit it hands in, or the failure that stopped it."""

    commit: str
    actions: tuple[Action, ...]
    deliverables: tuple[Deliverable, ...]
    artefacts: tuple[Artefact, ...]
    metrics: tuple[Metric, ...]
    failure: Failure | None
