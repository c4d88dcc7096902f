"""A story of a person's own: its goal's lines are commands; nothing is added to them."""

from __future__ import annotations

from oodatcaa.domain.evidence import GateSpec
from oodatcaa.domain.plan import (
    Alternative,
    Fact,
    Factor,
    Fallback,
    Problem,
    Risk,
    Size,
    Step,
    StepKind,
    Trouble,
)
from oodatcaa.errors import OodatcaaError
from oodatcaa.roles.planner import gates
from oodatcaa.roles.planner.common import quality_line
from oodatcaa.roles.planner.design import Checks, Design, Forced, Group, step
from oodatcaa.roles.planner.inputs import PlanInputs
from oodatcaa.roles.planner.scoring import decide, with_pros_and_cons
from oodatcaa.roles.planner.wording import plural

COMMAND_MINUTES = 5
COMMAND_TIMEOUT = 3600

FACTORS = (
    Factor(
        key="exact",
        title="Commands are given",
        weight=1,
        why="only an exact command can be run and checked unattended",
    ),
)


def commands_of(goal: str) -> tuple[str, ...]:
    """One command a line; empty lines and `#` comments are skipped, `$ ` and `- ` cut off."""
    lines = (line.strip() for line in goal.splitlines())
    cut = (line[2:].strip() if line.startswith(("$ ", "- ")) else line for line in lines)
    return tuple(line for line in cut if line and not line.startswith("#"))


def design(inputs: PlanInputs, forced: Forced | None = None) -> Design:
    """Raises OodatcaaError when the goal holds no command: there would be nothing to check."""
    story = inputs.story
    commands = commands_of(story.goal)
    if not commands:
        raise OodatcaaError(
            "plan.no_command",
            f"{story.id} {story.title!r} has no command in its goal",
            hint=f"write one command a line into {story.id}'s goal; oodatcaa show {story.id}",
        )
    steps = tuple(_step(number, line) for number, line in enumerate(commands, 1))
    checks = tuple(
        gates.command(
            f"Command {number}",
            line,
            f"`{line}` ends with 0 at the submitted commit",
            timeout=COMMAND_TIMEOUT,
        )
        for number, line in enumerate(commands, 1)
    )
    way = Alternative(
        key="commands",
        title="The goal's commands as they are written",
        facts={
            "exact": Fact(
                value=plural(len(commands), "command"), source=f"given in {story.id}", score=1.0
            )
        },
        effort_minutes=COMMAND_MINUTES * len(commands),
    )
    ways = (with_pros_and_cons(way, FACTORS),)
    return Design(
        problem=Problem(
            current_state=(f"{story.title}: {plural(len(commands), 'command')} to run",),
            impact="Unknown to the planner: the goal names commands, not reasons",
            statement=f"Run {plural(len(commands), 'command')} and commit what changes",
        ),
        constraints=("Commands run in the story's worktree, one after the other",),
        interfaces=tuple(f"`{line}`" for line in commands),
        alternatives=ways,
        decision=decide(
            ways,
            FACTORS,
            candidates=("commands",),
            because=(f"Adaptation: {forced.reason}",) if forced else (),
            trade_offs=("The planner knows nothing beyond the commands and weighs nothing else",),
        ),
        fallback=Fallback(
            trigger="a command fails",
            action="A person mends the command or its cause",
            costs=(("read the log and mend it", 15),),
        ),
        size=Size.S,
        steps=steps,
        groups=(Group(story.title, tuple(range(1, len(steps) + 1)), checks),),
        checks=_checks(inputs, commands, checks),
        risks=_risks(),
        handoff=tuple(f"Step {s.number}: `{s.command}`" for s in steps),
        backend=inputs.backend,
        params=inputs.params,
    )


def _step(number: int, line: str) -> Step:
    shown = line if len(line) <= 60 else line[:57] + "..."
    return step(
        number,
        StepKind.COMMAND,
        f"Run {shown}",
        "Run it in the story's worktree and commit what it changed.",
        ("the command ends with 0",),
        COMMAND_MINUTES,
        command=line,
    )


def _checks(inputs: PlanInputs, commands: tuple[str, ...], checks: tuple[GateSpec, ...]) -> Checks:
    return Checks(
        acceptance=checks,
        minutes=COMMAND_MINUTES * len(commands),
        scope=tuple(f"`{line}` in a fresh worktree" for line in commands),
        out_of_scope=(
            "Whether the commands do what was meant: only their exit codes are known",
            "Bounds of OBJECTIVE.md: a custom story decides none of them",
        ),
        integration=("The commands pass again on the merge",),
        regression=(quality_line(inputs),),
        benchmarks=("None",),
        troubleshooting=(
            Trouble(
                symptom="a command passes for the builder and fails in the check",
                cause="it needs files that are not committed",
                remedy="commit them, or make the command create them",
            ),
        ),
    )


def _risks() -> tuple[Risk, ...]:
    return (
        Risk(
            risk="A command fails or never ends",
            probability="medium",
            impact="medium",
            mitigation=f"it is stopped after {COMMAND_TIMEOUT // 60} min with its children",
            contingency="the story waits for a person with the output's tail",
        ),
        Risk(
            risk="A command can not be run twice: the check runs it again",
            probability="medium",
            impact="medium",
            mitigation="the check uses a fresh worktree of the submitted commit",
            contingency="write the command so that a second run changes nothing",
        ),
    )
