"""A story that was imported: its draft's steps, and what the draft says decides them.

Nothing of the draft's text becomes a command here but what its author wrote as one, and a person
approved.
"""

from __future__ import annotations

from collections.abc import Sequence

from oodatcaa.domain.draft import DraftStep, DraftStory
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
from oodatcaa.domain.question import Question
from oodatcaa.domain.task import Story
from oodatcaa.domain.trivial import ends_well_anyway
from oodatcaa.errors import OodatcaaError, RefusedError
from oodatcaa.roles.planner.common import quality_line
from oodatcaa.roles.planner.design import Checks, Design, step
from oodatcaa.roles.planner.imported_groups import Piece, groups_of, pieces_of
from oodatcaa.roles.planner.inputs import PlanInputs
from oodatcaa.roles.planner.scoring import decide, with_pros_and_cons

STEP_MINUTES = 15
MOST_QUESTIONS = 50
FACTORS = (
    Factor(key="given", title="The way is given", weight=1, why="its author has chosen already"),
)


def refuse_unapproved(story: Story) -> None:
    """The queue's rules keep such a story from the planner; this is the second lock."""
    source = story.source
    if source is not None and (source.wants_approval or source.held_back):
        raise RefusedError(
            "import.not_approved",
            source.held_back or source.reason(story.id),
            hint=f"oodatcaa show {story.id}",
        )


def design(inputs: PlanInputs, draft: DraftStory) -> Design:
    """Raises OodatcaaError when nothing in draft or project would decide the work."""
    refuse_unapproved(inputs.story)
    gates = {gate.id: gate for gate in draft.gates}
    wanted = tuple(gate for gate in draft.gates if gate.expect == "success")
    # A check that can not fail was named at the import: alone, it is what the person approved.
    decisive = tuple(gate for gate in wanted if not ends_well_anyway(gate.command)) or wanted
    if not decisive and not inputs.quality_gates and not draft.goals.artifacts:
        raise OodatcaaError(
            "plan.nothing_decides",
            f"{inputs.story.id} names no command, file or artifact: nothing would decide it",
            hint="set gates.quality in .oodatcaa/config.toml, or give the plan a check",
        )
    pieces, asked_after = pieces_of(draft)
    questions = sum(len(piece.asks) for piece in pieces) + len(asked_after)
    if questions > MOST_QUESTIONS:
        raise OodatcaaError(
            "plan.too_many_questions",
            f"{inputs.story.id} asks a person {questions} times; {MOST_QUESTIONS} are the most",
            hint="cut the plan into several, and import those",
        )
    if not any(piece.step.kind != "check" for piece in pieces):
        pieces, asked_after = _with_work(draft, pieces, asked_after, gates)
    steps = tuple(_step(number, piece, draft, gates) for number, piece in enumerate(pieces, 1))
    source = inputs.story.source
    name = source.file if source else "the plan"
    way = with_pros_and_cons(
        Alternative(
            key="as planned",
            title=f"The steps of {name}",
            facts={
                "given": Fact(value=f"{len(steps)} steps", source=f"imported: {name}", score=1.0)
            },
            effort_minutes=sum(item.estimate_minutes for item in steps),
        ),
        FACTORS,
    )
    return Design(
        problem=Problem(
            current_state=(f"{draft.title}: planned in {name}",),
            impact=draft.purpose or "Unknown: the imported plan gives no purpose",
            statement=draft.goal or draft.title,
        ),
        constraints=(
            "The plan is another tool's; the framework commits after every step",
            *(f"{item.what}: {item.text}" for item in draft.leftovers if item.text.strip()),
        ),
        interfaces=tuple(f"to be read: {path}" for path in draft.references),
        alternatives=(way,),
        decision=decide(
            (way,),
            FACTORS,
            candidates=("as planned",),
            because=(),
            trade_offs=("No other way was weighed: the plan was made elsewhere",),
        ),
        fallback=Fallback(
            trigger="a check does not pass",
            action="The agent gets what failed; then a person",
            costs=(("mend it", STEP_MINUTES),),
        ),
        size=Size.S if len(steps) < 4 else Size.M if len(steps) < 9 else Size.L,
        steps=steps,
        groups=groups_of(
            steps,
            pieces,
            gates,
            decisive,
            inputs.quality_gates,
            asked_after=bool(asked_after),
        ),
        checks=_checks(inputs, draft, decisive, asked_after),
        risks=_risks(),
        handoff=tuple(f"In words only, decided by nobody: {text}" for text in draft.statements),
        backend=inputs.backend,
        params=inputs.params,
    )


def _with_work(
    draft: DraftStory,
    pieces: list[Piece],
    asked_after: tuple[Question, ...],
    gates: dict[str, GateSpec],
) -> tuple[list[Piece], tuple[Question, ...]]:
    """A plan of checks alone, with its whole work before the first check that has to pass."""
    whole = DraftStep(number=1, title=draft.title, action=draft.goal)
    for at, piece in enumerate(pieces):
        if any(gates[name].expect == "success" for name in piece.step.gates if name in gates):
            after = Piece(piece.step)
            return [*pieces[:at], Piece(whole, piece.asks), after, *pieces[at + 1 :]], asked_after
    return [*pieces, Piece(whole, asked_after)], ()


def _step(number: int, piece: Piece, draft: DraftStory, gates: dict[str, GateSpec]) -> Step:
    item = piece.step
    minutes = item.estimate_minutes or STEP_MINUTES
    if item.kind != "check":
        made = _agent_step(
            number, item.title, item.action or item.title, draft, item.done, minutes, item.files
        )
        return made.evolve(message=piece.message) if piece.message else made
    checks = tuple(gates[name] for name in item.gates if name in gates)
    must = "fails" if any(gate.expect == "failure" for gate in checks) else "passes"
    made = step(
        number, StepKind.CHECK, item.title, f"The framework runs it: it {must}.", (must,), 1
    )
    return made.evolve(checks=checks)


def _agent_step(
    number: int,
    title: str,
    what: str,
    draft: DraftStory,
    done: str = "",
    minutes: int = STEP_MINUTES,
    files: Sequence[str] = (),
) -> Step:
    about = [what]
    about += [f"Files: {', '.join(files)}"] if files else []
    about += [f"It serves: {draft.purpose}"] if draft.purpose else []
    held = done or "the plan's checks pass"
    return step(number, StepKind.AGENT, title, "\n\n".join(about), (held,), minutes)


def _checks(
    inputs: PlanInputs,
    draft: DraftStory,
    decisive: tuple[GateSpec, ...],
    asks: tuple[Question, ...],
) -> Checks:
    acceptance = decisive or inputs.quality_gates
    return Checks(
        acceptance=acceptance,
        minutes=max(1, len(acceptance)),
        scope=tuple(gate.statement or gate.name for gate in acceptance) or (draft.title,),
        out_of_scope=draft.statements or ("Whatever the imported plan does not name",),
        integration=("The plan's goals are checked again on the merge",),
        regression=(quality_line(inputs),),
        benchmarks=("None",),
        asks=asks,
        troubleshooting=(
            Trouble(
                symptom="a command passes elsewhere and fails here",
                cause="the plan was written for another machine",
                remedy="import it again with --map OLD=NEW",
            ),
        ),
    )


def _risks() -> tuple[Risk, ...]:
    return (
        Risk(
            risk="The plan does not fit this repository",
            probability="medium",
            impact="medium",
            mitigation="every path was checked at the import, every command approved",
            contingency="the story waits for a person with what failed",
        ),
    )
