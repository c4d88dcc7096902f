"""Let the framework check a commit: gates in a fresh worktree, metrics from the artefacts."""

from __future__ import annotations

from collections.abc import Callable

from oodatcaa.app.isolation import watching
from oodatcaa.app.metrics import ArtefactMetrics
from oodatcaa.app.project import Project
from oodatcaa.domain.evidence import Evidence, GateKind, GateSpec
from oodatcaa.domain.goal_gates import goal_gates, person_gates
from oodatcaa.domain.plan import Plan, StepKind
from oodatcaa.domain.task import Story, StoryKind, Subtask
from oodatcaa.errors import OodatcaaError
from oodatcaa.gates.ports import GateRequest
from oodatcaa.gates.runner import GateRunner
from oodatcaa.gates.store import EvidenceStore
from oodatcaa.roles.builder import records
from oodatcaa.roles.desk import Desk
from oodatcaa.training.runs import RunStore


class Checker:
    """Runs gates for one desk; every result is stored as evidence before it is returned."""

    def __init__(self, project: Project, desk: Desk) -> None:
        self._project = project
        self._desk = desk

    def run(
        self,
        gates: tuple[GateSpec, ...],
        plan: Plan,
        task: Story | Subtask,
        commit: str,
        *,
        say: Callable[[str], None],
    ) -> tuple[Evidence, ...]:
        """One evidence per gate, also after failures. Waived ones say so.

        Raises OodatcaaError `isolation` when the code under test changed something outside.
        """
        story_id = task.id if isinstance(task, Story) else task.story
        story = self._project.board().story_by_id[story_id]
        request = GateRequest(
            story=story_id,
            task=task.id,
            attempt=task.attempt,
            commit=commit,
            gates=gates,
            variables=self._variables(plan),
            waivers=story.waivers,
            target=self._project.sprint().target_branch,
        )
        runner = self.runner(plan, self._project.evidence)

        def tell(evidence: Evidence) -> None:
            gate = evidence.gate
            say(f"{task.id} {gate.id} {evidence.verdict.value}: {gate.name} ({evidence.detail})")

        # The code that these gates run was written by hands that are not the framework's own.
        outside = any(step.kind in (StepKind.AGENT, StepKind.COMMAND) for step in plan.steps)
        if not outside or all(gate.kind is not GateKind.COMMAND for gate in gates):
            return runner.run(request, on_evidence=tell)
        with watching(self._project, task.id, task.attempt, self._desk.agent):
            return runner.run(request, on_evidence=tell)

    def again(
        self, found: tuple[Evidence, ...], plan: Plan, store: EvidenceStore
    ) -> tuple[Evidence, ...]:
        """The same gates at the same commit once more, into another `store`; without waivers.

        `found` belongs to one task and one commit. It moves nothing.
        """
        first = found[0]
        request = GateRequest(
            story=first.story,
            task=first.task,
            attempt=first.attempt,
            commit=first.commit,
            gates=tuple(item.gate for item in found),
            variables=self._variables(plan),
            target=self._project.sprint().target_branch,
        )
        return self.runner(plan, store).run(request)

    def runner(self, plan: Plan, store: EvidenceStore) -> GateRunner:
        return GateRunner(
            self._project.repo,
            store,
            self._project.config.gates,
            metrics=ArtefactMetrics(
                self._desk,
                plan,
                self._project.repo.file_at,
                RunStore(self._project.work / "probes"),
            ),
            should_stop=self._desk.should_stop,
        )

    def _variables(self, plan: Plan) -> dict[str, str]:
        """{model}, {data}, {run}, {adapter}: those that exist by now."""
        found: dict[str, str] = {}
        try:
            found["model"] = self._desk.models.place(plan.model).path
        except OodatcaaError as error:
            self._desk.say(f"{{model}} is not available to gates: {error}")
        by_kind = {story.kind: story.id for story in self._desk.read_board().stories}
        data = self._desk.facts.get(
            by_kind.get(StoryKind.DATA, "-"), records.DATASET, records.DatasetFacts
        )
        if data is not None:
            found["data"] = data.dataset.path
        training = self._desk.facts.get(
            by_kind.get(StoryKind.TRAIN, "-"), records.TRAINING, records.TrainingFacts
        )
        if training is not None:
            found |= {"run": training.run_dir, "adapter": training.adapter_dir}
        return found


def story_gates(plan: Plan) -> tuple[GateSpec, ...]:
    """What the integrator runs again on the merge: the project's own checks, the plan's goals and
    every promised file; and what only a person can decide.

    Metrics depend on the artefacts, not on the merge, and were decided by the tester. A custom
    story has none: its criteria are all run again.
    """
    again = {GateKind.FILES} | ({GateKind.COMMAND} if plan.kind is StoryKind.CUSTOM else set())
    files = tuple(gate for gate in plan.test_plan.acceptance if gate.kind in again)
    promised = plan.promised_files
    merged = GateSpec(
        id="M1",
        name="every promised deliverable is in the merge",
        kind=GateKind.FILES,
        paths=promised,
    )
    goals = (*goal_gates(plan.goals), *person_gates(plan.goals))
    gates = (*plan.test_plan.quality_gates, *files, *goals)
    return (*gates, merged) if promised else gates
