"""A story's plan: one validated record per version, of which the Markdown plans are views."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Literal

from pydantic import (
    Field,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from oodatcaa.domain.base import NonEmpty, Record, Sha256, Utc
from oodatcaa.domain.evidence import GateSpec
from oodatcaa.domain.goals import Goals
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.question import Question
from oodatcaa.domain.task import StoryId, StoryKind, SubtaskId, SubtaskKind

_RESERVED = re.compile(r"G[TAL]\d+|T[XA]\d+|M\d+|RULES.*", re.IGNORECASE)


MOST_SUBTASKS = 4
"""Of one plan, beside those that begin with a person's answer."""


def dumped_without(values: dict[str, object], name: str) -> dict[str, object]:
    """`values` without an empty field: a plan from before there was one keeps its fingerprint."""
    return {key: value for key, value in values.items() if key != name or value}


class StepKind(StrEnum):
    """What a builder can do. Each kind has one executor in `roles`."""

    PROBE_FRAMEWORKS = "probe_frameworks"
    CHECK_INSTALLATION = "check_installation"
    LOAD_MODEL = "load_model"
    CHECK_INFERENCE = "check_inference"
    PROFILE_MEMORY = "profile_memory"
    BUILD_DATA = "build_data"
    VALIDATE_DATA = "validate_data"
    TRAIN = "train"
    EVALUATE = "evaluate"
    COMPARE_GENERATIONS = "compare_generations"
    MODEL_CARD = "model_card"
    DOCUMENT = "document"
    COMMAND = "command"
    AGENT = "agent"
    CHECK = "check"
    QUALITY_GATES = "quality_gates"


class Step(Record):
    number: PositiveInt
    title: NonEmpty
    kind: StepKind
    what: NonEmpty = Field(description="what is done, in a sentence or two")
    exit_gates: tuple[NonEmpty, ...] = Field(min_length=1, description="what must hold afterwards")
    estimate_minutes: PositiveInt
    command: str = Field(default="", description="only for kind command")
    message: str = Field(
        default="", description="the commit message that the plan wants; empty = one from the title"
    )
    checks: tuple[GateSpec, ...] = Field(
        default=(), description="only for kind check: what the framework runs at that point"
    )
    agent: str = Field(
        default="", description="only for kind agent: whose work it is; empty = whoever claims it"
    )
    document: str = Field(default="", description="which document, only for kind document")
    deliverables: tuple[str, ...] = Field(default=(), description="paths in the repository")
    critical: bool = False

    @model_serializer(mode="wrap")
    def _without_empty(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        return dumped_without(dump(self), "message")


class Traceability(Record):
    objective: NonEmpty
    objective_sha256: str
    epic: NonEmpty
    sprint: PositiveInt
    depends_on: tuple[str, ...] = ()
    unblocks: tuple[str, ...] = ()


class InventoryRow(Record):
    place: NonEmpty
    files: int
    lines: int
    what: str = ""


class Inventory(Record):
    """What is in the repository at the commit that the plan starts from."""

    commit: str
    rows: tuple[InventoryRow, ...]
    packages: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Problem(Record):
    current_state: tuple[NonEmpty, ...]
    impact: NonEmpty
    statement: NonEmpty


class Fact(Record):
    """One cell of the matrix: probed here, or labelled as an estimate with its source."""

    value: NonEmpty
    source: NonEmpty = Field(description="probed, measured, estimated from …, not available")
    score: float | None = Field(default=None, ge=0, le=1, description="None = not comparable")


class Alternative(Record):
    key: NonEmpty
    title: NonEmpty
    facts: dict[str, Fact] = Field(description="factor -> fact")
    pros: tuple[str, ...] = ()
    cons: tuple[str, ...] = ()
    effort_minutes: int = 0


class Factor(Record):
    key: NonEmpty
    title: NonEmpty
    weight: PositiveFloat
    why: NonEmpty


class PlanDecision(Record):
    chosen: NonEmpty
    factors: tuple[Factor, ...]
    totals: dict[str, float] = Field(description="alternative -> weighted score, 0..1")
    rationale: tuple[NonEmpty, ...]
    trade_offs: tuple[NonEmpty, ...]


class Fallback(Record):
    """What is done when the chosen way fails, with its cost in minutes."""

    trigger: NonEmpty
    action: NonEmpty
    costs: tuple[tuple[str, int], ...] = Field(description="(what, minutes); estimates")

    @property
    def total_minutes(self) -> int:
        return sum(minutes for _, minutes in self.costs)


class Risk(Record):
    risk: NonEmpty
    probability: Literal["low", "medium", "high"]
    impact: Literal["low", "medium", "high", "critical"]
    mitigation: NonEmpty
    contingency: NonEmpty


class SubtaskPlan(Record):
    id: SubtaskId
    kind: SubtaskKind
    title: NonEmpty
    steps: tuple[PositiveInt, ...] = ()
    depends_on: tuple[SubtaskId, ...] = ()
    estimate_minutes: PositiveInt
    asks: tuple[Question, ...] = Field(
        default=(), description="what a person has to answer before it begins"
    )

    @model_serializer(mode="wrap")
    def _without_empty(self, dump: SerializerFunctionWrapHandler) -> dict[str, object]:
        return dumped_without(dump(self), "asks")


class Trouble(Record):
    symptom: NonEmpty
    cause: NonEmpty
    remedy: NonEmpty


class TestPlan(Record):
    """How the work is verified. All gates are run by the framework, in a fresh worktree."""

    __test__ = False  # the name is the field's own word; pytest must not collect it

    scope: tuple[NonEmpty, ...]
    out_of_scope: tuple[NonEmpty, ...]
    quality_gates: tuple[GateSpec, ...]
    acceptance: tuple[GateSpec, ...] = Field(min_length=1)
    integration: tuple[NonEmpty, ...]
    regression: tuple[NonEmpty, ...]
    benchmarks: tuple[NonEmpty, ...]
    checklist: tuple[NonEmpty, ...]
    troubleshooting: tuple[Trouble, ...]


class AdaptationNote(Record):
    """Why this version differs from the one before."""

    round: int
    trigger: NonEmpty
    rungs: tuple[NonEmpty, ...] = Field(description="what was changed, one line each")
    tried: tuple[NonEmpty, ...] = Field(default=(), description="rungs considered, with estimates")
    failed: tuple[NonEmpty, ...] = Field(default=(), description="the gates that did not pass")
    before_bytes: int | None = None
    after_bytes: int | None = None
    limit_bytes: int | None = None


class Size(StrEnum):
    S = "S"
    M = "M"
    L = "L"


class Plan(Record):
    story: StoryId
    kind: StoryKind
    version: PositiveInt
    title: NonEmpty
    created_at: Utc
    author: NonEmpty
    goal: NonEmpty
    adaptation: AdaptationNote | None = None
    base_commit: str = ""
    branch: NonEmpty

    traceability: Traceability
    inventory: Inventory
    problem: Problem
    constraints: tuple[NonEmpty, ...]
    interfaces: tuple[NonEmpty, ...]
    definition_of_done: tuple[NonEmpty, ...]
    alternatives: tuple[Alternative, ...] = Field(min_length=1)
    decision: PlanDecision
    fallback: Fallback
    steps: tuple[Step, ...] = Field(min_length=1)
    size: Size
    subtasks: tuple[SubtaskPlan, ...] = Field(min_length=2, max_length=100)
    keeps: tuple[SubtaskId, ...] = Field(
        default=(), description="subtasks of earlier versions that stay as they are"
    )
    exit_gates: dict[str, tuple[GateSpec, ...]] = Field(
        description="build subtask id -> what must hold before it may be submitted"
    )
    test_plan: TestPlan
    goals: Goals = Goals()
    deliverables: tuple[NonEmpty, ...]
    risks: tuple[Risk, ...]
    sprint_impact: tuple[NonEmpty, ...]
    handoff: tuple[NonEmpty, ...]

    backend: NonEmpty = "mlx"
    model: NonEmpty
    params: QLoRA
    memory_limit_bytes: PositiveInt
    inputs: dict[str, str] = Field(
        default_factory=dict, description="data, run, … that earlier stories made"
    )
    source_sha256: Sha256 | None = None

    @property
    def estimate_minutes(self) -> int:
        return sum(subtask.estimate_minutes for subtask in self.subtasks)

    @property
    def fingerprint(self) -> str:
        """Of everything in it: the history keeps it, so that a changed file is noticed."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def commands(self) -> tuple[str, ...]:
        """Everything in it that is run as a command: its steps, checks, gates and truths."""
        tests = self.test_plan
        gates = [gate for step in self.steps for gate in step.checks]
        gates += [gate for gates in self.exit_gates.values() for gate in gates]
        gates += [*tests.acceptance, *tests.quality_gates]
        found = [step.command for step in self.steps]
        found += [gate.command for gate in gates]
        found += [truth.command for truth in self.goals.truths]
        return tuple(dict.fromkeys(line for line in found if line.strip()))

    @property
    def promised_files(self) -> tuple[str, ...]:
        """The deliverables that name a file of the repository; the others are prose."""
        return tuple(text for text in self.deliverables if names_a_file(text))

    @model_validator(mode="after")
    def _is_coherent(self) -> Plan:
        problems = plan_problems(self)
        if problems:
            raise ValueError("; ".join(problems))
        return self


def is_reserved(gate_id: str) -> bool:
    """Whether the framework itself gives this id to gates that it adds: goals (GT1, GA1, GL1), the
    tester's (TX1, TA1) and the integrator's (M1)."""
    return _RESERVED.fullmatch(gate_id) is not None


def gate_id_problems(rows: Iterable[tuple[str, Sequence[GateSpec]]]) -> list[str]:
    """Evidence is found by its gate's id: one id has to mean one check in the whole plan. `rows`
    are (place, its gates)."""
    problems = []
    known: dict[str, GateSpec] = {}
    for place, gates in rows:
        seen: set[str] = set()
        for gate in gates:
            if is_reserved(gate.id):
                problems.append(f"gate id {gate.id} in {place} is one of the framework's own")
            if gate.id in seen:
                problems.append(f"duplicate gate id {gate.id} in {place}")
            elif known.setdefault(gate.id, gate) != gate:
                problems.append(f"gate id {gate.id} in {place} means another check elsewhere")
            seen.add(gate.id)
    return problems


def names_a_file(text: str) -> bool:
    """Whether a deliverable is a path that has to be in the merge: one word with a folder or an
    ending; no folder, no address and no `{variable}`."""
    if " " in text or text.startswith("{") or text.endswith("/") or "://" in text:
        return False
    return "/" in text or "." in text


def plan_problems(plan: Plan, known: frozenset[str] | None = None) -> tuple[str, ...]:
    """Everything that is incoherent in a plan, all at once; empty = coherent.

    With `known`, only what can be said from these of its fields.
    """
    sure = frozenset(type(plan).model_fields) if known is None else known
    return tuple(
        problem for fields, check in _COHERENCE if fields <= sure for problem in check(plan)
    )


def _numbering(plan: Plan) -> list[str]:
    numbers = [step.number for step in plan.steps]
    if numbers == list(range(1, len(numbers) + 1)):
        return []
    return [f"steps must be numbered 1..{len(numbers)}, not {numbers}"]


def _subtask_ids(plan: Plan) -> list[str]:
    problems: list[str] = []
    ids = [subtask.id for subtask in plan.subtasks]
    if len(set(ids)) != len(ids):
        problems.append(f"duplicate subtask ids in {ids}")
    for subtask in plan.subtasks:
        if not subtask.id.startswith(plan.story + "-"):
            problems.append(f"{subtask.id} does not belong to {plan.story}")
        if (subtask.id.split("-")[1][0] == "B") != (subtask.kind is SubtaskKind.BUILD):
            problems.append(f"{subtask.id}: the letter does not match kind {subtask.kind.value}")
        problems += [
            f"{subtask.id} depends on unknown {needed}"
            for needed in subtask.depends_on
            if needed not in ids and needed not in plan.keeps
        ]
    return problems


def _exits(plan: Plan) -> list[str]:
    return [
        f"{subtask.id} has no exit gate: nothing would decide that it is done"
        for subtask in plan.subtasks
        if subtask.kind is SubtaskKind.BUILD and not plan.exit_gates.get(subtask.id)
    ]


def _kinds(plan: Plan) -> list[str]:
    problems = []
    if sum(not subtask.asks for subtask in plan.subtasks) > MOST_SUBTASKS:
        problems.append(
            f"{len(plan.subtasks)} subtasks: {MOST_SUBTASKS} are the most, beside those that wait "
            "for a person's answer"
        )
    if not any(subtask.kind is SubtaskKind.TEST for subtask in plan.subtasks):
        problems.append("no test subtask: nobody would verify the work")
    if not plan.keeps and not any(item.kind is SubtaskKind.BUILD for item in plan.subtasks):
        problems.append("no build subtask")
    return problems


def _dealt_out(plan: Plan) -> list[str]:
    numbers = [step.number for step in plan.steps]
    dealt = sorted(number for subtask in plan.subtasks for number in subtask.steps)
    if dealt == numbers or plan.keeps:
        return []
    return [f"steps {dealt} are dealt out, but the plan has {numbers}"]


def _gate_ids(plan: Plan) -> list[str]:
    tests = plan.test_plan
    checks = (*tests.acceptance, *tests.quality_gates)
    return gate_id_problems([*plan.exit_gates.items(), ("the test plan", checks)])


def _choice(plan: Plan) -> list[str]:
    if plan.decision.chosen in {alternative.key for alternative in plan.alternatives}:
        return []
    return [f"the decision chose {plan.decision.chosen!r}, which is no alternative"]


_COHERENCE: tuple[tuple[frozenset[str], Callable[[Plan], list[str]]], ...] = (
    (frozenset({"steps"}), _numbering),
    (frozenset({"story", "subtasks", "keeps"}), _subtask_ids),
    (frozenset({"subtasks", "exit_gates"}), _exits),
    (frozenset({"subtasks", "keeps"}), _kinds),
    (frozenset({"steps", "subtasks", "keeps"}), _dealt_out),
    (frozenset({"exit_gates", "test_plan"}), _gate_ids),
    (frozenset({"decision", "alternatives"}), _choice),
)
"""What each check looks at, and the check."""
