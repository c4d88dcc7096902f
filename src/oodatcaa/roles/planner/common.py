"""What plans of every kind say: constraints, definition of done, sprint impact, checklist."""

from __future__ import annotations

from collections.abc import Sequence

from oodatcaa.domain.board import Board
from oodatcaa.domain.evidence import GateKind, GateSpec
from oodatcaa.domain.plan import Traceability
from oodatcaa.domain.task import Story, StoryStatus
from oodatcaa.roles.planner.inputs import PlanInputs
from oodatcaa.roles.planner.wording import machine_line, plural, size

CLOSED = frozenset({StoryStatus.DONE, StoryStatus.CANCELLED})


def quality_line(inputs: PlanInputs) -> str:
    gates = inputs.quality_gates
    if not gates:
        return "No quality gate is configured in .oodatcaa/config.toml: only the criteria decide"
    return (
        f"The project's own {plural(len(gates), 'quality gate')} "
        f"({', '.join(gate.name for gate in gates)}) pass as before"
    )


def constraints(inputs: PlanInputs) -> tuple[str, ...]:
    objective, machine = inputs.objective, inputs.machine
    limit = (
        f"Memory limit {objective.memory_limit_text} ({objective.memory_limit_bytes:,} bytes), "
        "hard: checked before, during and after a run"
    )
    if objective.memory_limit_bytes > machine.memory_bytes:
        limit += f"; the machine itself has only {size(machine.memory_bytes)}"
    return (
        limit,
        f"Machine {machine.host}: {machine_line(machine)}",
        f"Budget of the sprint: {objective.budget.minutes} min, "
        f"{plural(objective.budget.adapt_rounds, 'adaptation round')} at most",
        "Weights and data stay outside git; git gets records, cards and plots",
        *inputs.dependency_notes,
    )


def definition_of_done(inputs: PlanInputs, acceptance: Sequence[GateSpec]) -> tuple[str, ...]:
    critical = [gate.id for gate in acceptance if gate.critical]
    marked = f"; critical: {', '.join(critical)}" if critical else ""
    return (
        f"All {len(acceptance)} acceptance criteria pass in a fresh worktree{marked}",
        quality_line(inputs),
        "Every deliverable is committed on the story's branch",
        f"Merged into {_target(inputs.board)} with the gates green after the merge, tagged "
        f"{inputs.story.id}-complete",
    )


def _target(board: Board) -> str:
    return board.sprint.target_branch if board.sprint else "the target branch"


def checklist(acceptance: Sequence[GateSpec], quality: Sequence[GateSpec]) -> tuple[str, ...]:
    """What the framework does to verify, in order, with the exact commands and bounds."""
    lines = [
        "Check out the submitted commit into a fresh worktree",
        "Take the project's code from that worktree and record the path it was imported from",
    ]
    lines += [f"{gate.id} {gate.name}: {how(gate)}" for gate in (*quality, *acceptance)]
    lines += ["Store one piece of evidence for each gate", "Remove the worktree"]
    return tuple(lines)


def how(gate: GateSpec) -> str:
    """The exact command, bound or files that decide a gate."""
    if gate.kind is GateKind.COMMAND:
        return f"`{gate.command}` exits with 0"
    if gate.kind is GateKind.METRIC:
        return f"`{gate.bound}`, recomputed"
    return f"{plural(len(gate.paths), 'file')} present and not empty"


def traceability(inputs: PlanInputs) -> Traceability:
    objective, board, story = inputs.objective, inputs.board, inputs.story
    return Traceability(
        objective=f"{objective.id}: {objective.title}",
        objective_sha256=objective.sha256,
        epic=f"Fine-tune {objective.model} within {objective.memory_limit_text}",
        sprint=board.sprint.number if board.sprint else 1,
        depends_on=story.depends_on,
        unblocks=tuple(s.id for s in board.stories if story.id in s.depends_on),
    )


def sprint_impact(inputs: PlanInputs, minutes: int, first: Sequence[str]) -> tuple[str, ...]:
    """Derived from the board: progress, weight of this story, what waits for it, critical path."""
    board, story = inputs.board, inputs.story
    stories = [s for s in board.stories if s.status is not StoryStatus.CANCELLED]
    total = sum(s.estimate_minutes for s in stories)
    done = [s for s in stories if s.status is StoryStatus.DONE]
    lines = [f"Ready to be claimed first: {', '.join(first)}"]
    if stories:
        share = sum(s.estimate_minutes for s in done) / total
        lines.append(
            f"Stories integrated so far: {len(done)} of {len(stories)} "
            f"({share:.0%} of {total} estimated minutes)"
        )
        weight = story.estimate_minutes / total if story.id in board.story_by_id else 0
        lines.append(f"{story.id} weighs {weight:.0%} of the objective")
    lines.append(
        f"Estimate of this plan: {minutes} min; the story was offered with "
        f"{story.estimate_minutes} min"
    )
    lines.append(_waiting(board, story))
    path = critical_path(board)
    if path:
        where = "on it" if story.id in path else "not on it"
        left = sum(board.story_by_id[i].estimate_minutes for i in path)
        lines.append(f"Critical path: {' → '.join(path)} ({left} min); {story.id} is {where}")
    return tuple(lines)


def _waiting(board: Board, story: Story) -> str:
    direct = [s.id for s in board.stories if story.id in s.depends_on]
    after: list[str] = []
    front = list(direct)
    while front:
        found = [
            s.id for s in board.stories if front[0] in s.depends_on and s.id not in after + direct
        ]
        after += found
        front = front[1:] + found
    if not direct:
        return f"No other story waits for {story.id}"
    return f"{story.id} unblocks {', '.join(direct)}" + (
        f"; after them {', '.join(after)}" if after else ""
    )


def critical_path(board: Board) -> tuple[str, ...]:
    """The chain of open stories with the largest sum of estimates; ties by id."""
    open_ids = {s.id for s in board.stories if s.status not in CLOSED}
    best: dict[str, tuple[int, tuple[str, ...]]] = {}

    def ending_at(story: Story, seen: frozenset[str]) -> tuple[int, tuple[str, ...]]:
        if story.id not in best:
            before = [
                ending_at(board.story_by_id[i], seen | {story.id})
                for i in story.depends_on
                if i in open_ids and i not in seen and i != story.id
            ]
            longest = max(before, key=lambda pair: (pair[0], pair[1]), default=(0, ()))
            best[story.id] = (longest[0] + story.estimate_minutes, (*longest[1], story.id))
        return best[story.id]

    chains = [ending_at(s, frozenset()) for s in board.stories if s.id in open_ids]
    return max(chains, key=lambda pair: (pair[0], pair[1]), default=(0, ()))[1]
