"""Boards, plans and evidence for tests of the rules: small, but made of the real records."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from oodatcaa.domain.board import Board, Sprint
from oodatcaa.domain.evidence import Evidence, GateKind, GateSpec, Verdict
from oodatcaa.domain.negotiation import claim
from oodatcaa.domain.objective import parse_objective
from oodatcaa.domain.plan import (
    Alternative,
    Fallback,
    Inventory,
    Plan,
    PlanDecision,
    Problem,
    Size,
    Step,
    StepKind,
    SubtaskPlan,
    TestPlan,
    Traceability,
)
from oodatcaa.domain.policy import Policy
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.sprinting import open_sprint, stories_for
from oodatcaa.domain.submission import submit_build, submit_integration, submit_plan, submit_test
from oodatcaa.domain.task import Failure, Integration, Role, Story, StoryKind, Subtask, SubtaskKind

NOW = datetime(2026, 1, 30, 12, 0, tzinfo=UTC)
POLICY = Policy()
OBJECTIVE = parse_objective("---\nid: O1\ntitle: A tuned model\nmemory_limit: 16GB\n---\nprose\n")
GATE = GateSpec(id="X1", name="it runs", kind=GateKind.COMMAND, command="true")
AC = GateSpec(id="AC1", name="it works", kind=GateKind.COMMAND, command="true")


def later(minutes: float) -> datetime:
    return NOW + timedelta(minutes=minutes)


def sprint(rounds: int = 3) -> Sprint:
    return Sprint(
        number=1,
        objective_id="O1",
        objective_sha256="0" * 64,
        title="A tuned model",
        target_branch="main",
        memory_limit_bytes=16 * 10**9,
        max_adapt_rounds=rounds,
        created_at=NOW,
    )


def fresh_board(stories: tuple[Story, ...] | None = None, rounds: int = 3) -> Board:
    return open_sprint(
        Board(), NOW, sprint=sprint(rounds), stories=stories or stories_for(OBJECTIVE, NOW)
    ).board


def plan_for(
    story: Story,
    version: int | None = None,
    *,
    builds: int = 1,
    first: int = 1,
    keeps: tuple[str, ...] = (),
    parallel: bool = False,
) -> Plan:
    """A coherent plan: `builds` build subtasks in a row (or side by side) and one test."""
    numbers = range(first, first + builds)
    ids = [f"{story.id}-B{n:02d}" for n in numbers]
    subtasks = [
        SubtaskPlan(
            id=name,
            kind=SubtaskKind.BUILD,
            title=f"build {name}",
            steps=(place + 1,),
            depends_on=(ids[place - 1],) if place and not parallel else (),
            estimate_minutes=5,
        )
        for place, name in enumerate(ids)
    ]
    subtasks.append(
        SubtaskPlan(
            id=f"{story.id}-T{first:02d}",
            kind=SubtaskKind.TEST,
            title="verify",
            depends_on=tuple(ids),
            estimate_minutes=2,
        )
    )
    steps = tuple(
        Step(
            number=place + 1,
            title="a step",
            kind=StepKind.COMMAND,
            what="runs",
            exit_gates=("it ran",),
            estimate_minutes=5,
            command="true",
        )
        for place in range(builds)
    )
    return Plan(
        story=story.id,
        kind=StoryKind.CUSTOM,
        version=version or story.plan_version + 1,
        title=story.title,
        created_at=NOW,
        author="planner-A",
        goal="get it done",
        branch=story.branch,
        traceability=Traceability(objective="O1", objective_sha256="", epic="training", sprint=1),
        inventory=Inventory(commit="c0", rows=()),
        problem=Problem(current_state=("nothing",), impact="none", statement="do it"),
        constraints=("16 GB",),
        interfaces=("none",),
        definition_of_done=("done",),
        alternatives=(Alternative(key="mlx", title="MLX-LM", facts={}),),
        decision=PlanDecision(
            chosen="mlx", factors=(), totals={}, rationale=("fast",), trade_offs=("few",)
        ),
        fallback=Fallback(trigger="it fails", action="another", costs=()),
        steps=steps,
        size=Size.S,
        subtasks=tuple(subtasks),
        keeps=keeps,
        exit_gates=dict.fromkeys(ids, (GATE,)),
        test_plan=TestPlan(
            scope=("all",),
            out_of_scope=("none",),
            quality_gates=(),
            acceptance=(AC,),
            integration=("merge",),
            regression=("tests",),
            benchmarks=("none",),
            checklist=("run",),
            troubleshooting=(),
        ),
        deliverables=("a file",),
        risks=(),
        sprint_impact=("none",),
        handoff=("go",),
        model="demo",
        params=QLoRA(),
        memory_limit_bytes=16 * 10**9,
    )


def seen(
    subtask: Subtask,
    gate: GateSpec,
    verdict: Verdict = Verdict.PASSED,
    *,
    commit: str = "c1",
    attempt: int | None = None,
) -> Evidence:
    number = subtask.attempt if attempt is None else attempt
    return Evidence(
        id=f"{subtask.id}-{number}-{gate.id}",
        gate=gate,
        verdict=verdict,
        story=subtask.story,
        task=subtask.id,
        attempt=number,
        commit=commit,
        detail="as seen",
        host="here",
        started_at=NOW,
        duration_seconds=1.0,
    )


def failure(task: str, kind: str = "memory_gate", **more: object) -> Failure:
    values = {"kind": kind, "task": task, "summary": "50 GB needed, limit 16 GB", "at": NOW}
    return Failure.model_validate({**values, **more})


def take(board: Board, role: Role, task: str, owner: str | None = None) -> Board:
    return claim(
        board,
        POLICY,
        NOW,
        role=role,
        owner=owner or f"{role.value}-A",
        host="here",
        pid=None,
        process_started_at=None,
        task=task,
    ).board


def planned(board: Board, story: str, *, builds: int = 1, parallel: bool = False) -> Board:
    board = take(board, Role.PLANNER, story)
    held = board.story_by_id[story]
    return submit_plan(
        board,
        NOW,
        story=story,
        owner="planner-A",
        attempt=held.attempt,
        plan=plan_for(held, builds=builds, parallel=parallel),
    ).board


def build(board: Board, subtask: str, verdict: Verdict = Verdict.PASSED) -> Board:
    board = take(board, Role.BUILDER, subtask)
    held = board.subtask_by_id[subtask]
    return submit_build(
        board,
        NOW,
        subtask=subtask,
        owner="builder-A",
        attempt=held.attempt,
        commit="c1",
        artefacts=(),
        evidence=(seen(held, GATE, verdict),),
        gates=(GATE,),
        failure=None,
    ).board


def verify(board: Board, subtask: str, verdict: Verdict = Verdict.PASSED) -> Board:
    board = take(board, Role.TESTER, subtask)
    held = board.subtask_by_id[subtask]
    return submit_test(
        board,
        NOW,
        subtask=subtask,
        owner="tester-A",
        attempt=held.attempt,
        commit="c1",
        evidence=(seen(held, AC, verdict),),
        gates=(AC,),
    ).board


def proof(story: str) -> Integration:
    return Integration(
        target="main",
        merge_commit="m1",
        tag=f"{story}-complete",
        evidence=(f"{story}-X1",),
        at=NOW,
    )


def checked(board: Board, story: str, **more: object) -> dict[str, Any]:
    """The evidence that `proof` names, of the attempt that the board knows."""
    found = Evidence.model_validate(
        {
            "id": f"{story}-X1",
            "gate": GATE,
            "verdict": Verdict.PASSED,
            "task": story,
            "attempt": max(board.story_by_id[story].attempt, 1),
            "commit": "m1",
            "detail": "as seen",
            "host": "here",
            "started_at": NOW,
            "duration_seconds": 1.0,
            **more,
            "story": str(more.get("task", story))[:4],
        }
    )
    return {"commit": "m1", "evidence": (found,), "gates": (GATE,)}


def integrate(board: Board, story: str) -> Board:
    board = take(board, Role.INTEGRATOR, story)
    return submit_integration(
        board,
        NOW,
        story=story,
        owner="integrator-A",
        attempt=board.story_by_id[story].attempt,
        integration=proof(story),
        **checked(board, story),
    ).board


def finish(board: Board, story: str) -> Board:
    """The whole life of a story whose dependencies are done."""
    board = planned(board, story)
    board = build(board, f"{story}-B01")
    return integrate(verify(board, f"{story}-T01"), story)
