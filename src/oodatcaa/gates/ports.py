"""What gates need of the rooms beside them; `app` wires it."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from pydantic import Field

from oodatcaa.domain.base import NonEmpty, Record
from oodatcaa.domain.evidence import GateSpec, Waiver


class Checkouts(Protocol):
    """The repository, as far as gates need it (`vcs.Repository` is one)."""

    @property
    def root(self) -> Path: ...

    def check_worktree(self, commit: str, label: str) -> AbstractContextManager[Path]:
        """A fresh worktree at `commit` that is gone afterwards."""
        ...

    def dirty_paths(self, checkout: Path | None = None) -> tuple[str, ...]:
        """What differs from the commit in `checkout`; nothing that git ignores."""
        ...

    def index_of(self, checkout: Path) -> bytes:
        """Git's index of `checkout`, for `restore`."""
        ...

    def restore(
        self, checkout: Path, commit: str, keep: Collection[str] = (), index: bytes = b""
    ) -> tuple[str, ...]:
        """Bring `checkout` back to `commit`; the paths that had been changed. Untracked paths in
        `keep` and everything ignored stay. With `index`, from before a check ran, nothing that the
        check told git hides a change."""
        ...

    def sizes_at(self, commit: str) -> dict[str, int]:
        """Every tracked file at `commit` with its size in bytes."""
        ...

    def file_at(self, commit: str, path: str) -> bytes | None:
        """The content of a tracked file, None when there is none."""
        ...

    def resolve(self, name: str) -> str: ...


class GateRequest(Record):
    """One round of gates for one attempt at a task."""

    story: NonEmpty
    task: NonEmpty
    attempt: int = Field(ge=0)
    commit: NonEmpty
    gates: tuple[GateSpec, ...]
    variables: dict[str, str] = Field(
        default_factory=dict, description="run, adapter, data, model, …: what {name} stands for"
    )
    waivers: tuple[Waiver, ...] = ()
    target: str = Field(default="", description="the branch that baselines are taken from")


class MetricValue(Record):
    """A metric that was recomputed from the artefacts; None = it could not be."""

    value: float | None
    interval: tuple[float, float] | None = None
    detail: str = Field(default="", description="how it was measured, in a few words")


class MetricSource(Protocol):
    def measure(self, metric: str, request: GateRequest) -> MetricValue | None:
        """Recompute `metric` from the artefacts, never from an agent's numbers.

        None = not known here. An OodatcaaError becomes crashed evidence with its message.
        """
        ...
