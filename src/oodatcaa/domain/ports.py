"""The doors between rooms. `app` decides which adapter stands behind each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, TypeVar

from pydantic import PositiveInt

from oodatcaa.domain.base import Record
from oodatcaa.domain.board import Board, Decision, Event

if TYPE_CHECKING:
    from oodatcaa.domain.memory import MemoryEstimate
    from oodatcaa.domain.training import (
        BackendProbe,
        EvalRequest,
        EvalResult,
        InferenceProbe,
        RunRecord,
        TrainProgress,
        TrainSpec,
    )

T = TypeVar("T")


class Logged(Record):
    """An event as the journal keeps it: `seq` is the transaction, `index` its place in it."""

    seq: PositiveInt
    index: int
    event: Event


class Store(Protocol):
    """The queue. One primitive changes it: `transact`."""

    def read(self) -> Board:
        """The newest committed board, without waiting for a writer. Raises StateError."""
        ...

    def transact(self, decide: Callable[[Board, datetime], Decision[T]]) -> T:
        """Read, decide, write under one lock; returns the decision's value.

        `decide` gets the board and the framework's clock (aware UTC), must be pure, and is called
        exactly once. When it raises, or returns the same board and no events, nothing is written.
        Once this returns, board and events are durable; revision grew by one.
        """
        ...

    def history(self) -> Iterator[Logged]:
        """Every event since the sprint began, oldest first."""
        ...


class TrainingBackend(Protocol):
    """One training framework on this machine."""

    @property
    def name(self) -> str: ...

    @property
    def caches_frozen(self) -> bool:
        """Whether `cache_frozen` is anything to it."""
        ...

    def probe(self) -> BackendProbe: ...

    def estimate(self, spec: TrainSpec) -> MemoryEstimate: ...

    def forecast(
        self,
        spec: TrainSpec,
        *,
        budget: int = ...,
        should_stop: Callable[[], bool] | None = None,
    ) -> MemoryEstimate:
        """A measured estimate: real steps at or below the worst batch of at most `budget` tokens.

        Measures nothing when an earlier probe answers. Raises OodatcaaError when `should_stop` says
        so; what measured is gone by then.
        """
        ...

    def time_step(
        self,
        spec: TrainSpec,
        *,
        budget: int = ...,
        should_stop: Callable[[], bool] | None = None,
    ) -> tuple[MemoryEstimate, float | None]:
        """The forecast, and the measured seconds of one micro-step; None when it met the limit.

        Raises OodatcaaError like `forecast`.
        """
        ...

    def train(
        self,
        spec: TrainSpec,
        *,
        on_progress: Callable[[TrainProgress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> RunRecord:
        """Train under the memory gate. A run that fails is returned as a failed record.

        Raises OodatcaaError only for a request that can not become a run.
        """
        ...

    def evaluate(
        self, request: EvalRequest, *, should_stop: Callable[[], bool] | None = None
    ) -> EvalResult:
        """Raises OodatcaaError when `should_stop` says so; what computed is gone by then."""
        ...

    def infer(
        self,
        model: str,
        adapter_dir: str | None,
        prompts: Sequence[str],
        max_tokens: int,
        *,
        memory_limit_bytes: int | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> tuple[InferenceProbe, ...]:
        """One for each prompt. Raises OodatcaaError when `should_stop` says so, like `evaluate`."""
        ...
