"""What a step executor works with."""

from __future__ import annotations

from dataclasses import dataclass

from oodatcaa.domain.plan import Plan, Step
from oodatcaa.domain.task import Failure, Story, Subtask
from oodatcaa.domain.training import RunFailure, TrainSpec
from oodatcaa.kit.files import write_atomic
from oodatcaa.roles.desk import Desk, ModelPlace, Workspace

DOCS = "docs/training"


@dataclass(frozen=True)
class Bench:
    desk: Desk
    plan: Plan
    story: Story
    subtask: Subtask
    step: Step
    workspace: Workspace

    def write(self, path: str, text: str) -> str:
        """Write a document into the worktree and return its path."""
        write_atomic(self.workspace.path / path, text if text.endswith("\n") else text + "\n")
        return path

    def model(self) -> ModelPlace:
        """The plan's model on this machine, re-quantised when the plan says so."""
        return self.desk.models.place(self.plan.model)

    def spec(self, model: ModelPlace, data_dir: str, data_sha256: str) -> TrainSpec:
        """The frozen order for a training child, from the plan alone."""
        sha, dirty = self.desk.git_state()
        return TrainSpec(
            backend=self.plan.backend,
            model=model.path,
            model_name=model.name,
            data_dir=data_dir,
            data_sha256=data_sha256,
            params=self.plan.params,
            memory_limit_bytes=self.plan.memory_limit_bytes,
            git_sha=sha,
            git_dirty=dirty,
            story=self.story.id,
            task=self.subtask.id,
            attempt=self.subtask.attempt,
        )

    def failed(self, failure: RunFailure) -> Failure:
        """A run's failure as the task's."""
        return Failure(
            kind=failure.kind.value,
            task=self.subtask.id,
            summary=failure.message,
            layer=failure.layer.value if failure.layer else None,
            needed_bytes=failure.needed_bytes,
            limit_bytes=failure.limit_bytes,
            gates=(f"what helps: {failure.hint}",) if failure.hint else (),
            at=self.desk.now(),
        )
