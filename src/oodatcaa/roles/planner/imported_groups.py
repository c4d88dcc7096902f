"""How the steps of an imported plan become subtasks: what stays together, where a person is asked,
and whose message a commit bears."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oodatcaa.domain.commit_message import commit_message
from oodatcaa.domain.draft import DraftStep, DraftStory
from oodatcaa.domain.evidence import GateKind, GateSpec
from oodatcaa.domain.plan import MOST_SUBTASKS, Step, StepKind
from oodatcaa.domain.question import Asks, Question
from oodatcaa.roles.planner.design import Group

MOST_GROUPS = MOST_SUBTASKS - 1
_ASKS = {"human-verify": Asks.VERIFY, "decision": Asks.DECIDE, "human-action": Asks.ACT}


@dataclass(frozen=True)
class Piece:
    """A step that somebody or the framework does."""

    step: DraftStep
    asks: tuple[Question, ...] = ()
    """What a person answers before it begins."""
    message: str = ""
    """Of its commit, when the plan names one."""


def pieces_of(draft: DraftStory) -> tuple[list[Piece], tuple[Question, ...]]:
    """(the plan's work in its order, the questions that come after all of it)"""
    found: list[Piece] = []
    asks: list[Question] = []
    for item in draft.steps:
        if item.needs_human:
            asks.append(_question(item))
        elif item.kind == "commit":
            _give_message(found, commit_message(item.action))
        else:
            found.append(Piece(item, tuple(asks)))
            asks = []
    return found, tuple(asks)


def _question(item: DraftStep) -> Question:
    name = item.kind.partition(":")[2]
    title = f"{name or 'checkpoint'}, step {item.number}"
    if item.title != f"Step {item.number}":
        title += f" ({item.title})"
    return Question(
        asks=_ASKS.get(name, Asks.VERIFY), title=title, text=item.action.strip() or item.title
    )


def _give_message(found: list[Piece], message: str) -> None:
    """To the last work before the plan's commit: what came earlier has been committed already."""
    for at in range(len(found) - 1, -1, -1):
        piece = found[at]
        if piece.message:
            return
        if piece.step.kind != "check":
            found[at] = Piece(piece.step, piece.asks, message)
            return


def groups_of(
    steps: Sequence[Step],
    pieces: Sequence[Piece],
    gates: dict[str, GateSpec],
    decisive: tuple[GateSpec, ...],
    quality: tuple[GateSpec, ...],
    *,
    asked_after: bool,
) -> tuple[Group, ...]:
    """Build subtasks: a check stays with the work before it, a question begins a new subtask, and
    the last one answers for everything."""
    cuts = _cuts(steps, pieces)
    groups = []
    for place, start in enumerate(cuts):
        end = cuts[place + 1] if place + 1 < len(cuts) else len(steps)
        numbers = tuple(item.number for item in steps[start:end])
        own = [gates[n] for piece in pieces[start:end] for n in piece.step.gates if n in gates]
        held = tuple(gate for gate in own if gate.expect == "success")
        if end == len(steps):
            held = decisive or quality
        groups.append(Group(steps[start].title, numbers, held, pieces[start].asks))
    return tuple(_with_gates(groups, asked_after=asked_after))


def _cuts(steps: Sequence[Step], pieces: Sequence[Piece]) -> list[int]:
    """Where subtasks begin: at every question, and between two works while there is room."""
    cuts = [0]
    room = MOST_GROUPS - 1
    for at in range(1, len(steps)):
        works = steps[at].kind is StepKind.AGENT and steps[at - 1].kind is StepKind.AGENT
        if pieces[at].asks:
            cuts.append(at)
        elif works and room > 0:
            cuts.append(at)
            room -= 1
    return cuts


def _with_gates(groups: Sequence[Group], *, asked_after: bool) -> list[Group]:
    """Work that no gate of its own decides is handed in together with what comes next, unless a
    person looks at it in between."""
    found: list[Group] = []
    carried: Group | None = None
    for place, group in enumerate(groups):
        if carried is not None:
            group = Group(carried.title, carried.steps + group.steps, group.gates, carried.asks)
        following = groups[place + 1] if place + 1 < len(groups) else None
        asked = bool(following.asks) if following is not None else asked_after
        if not group.gates and not asked and following is not None:
            carried = group
            continue
        found.append(group if group.gates else _looked_at(group))
        carried = None
    return found


def _looked_at(group: Group) -> Group:
    """Nothing but the person who is asked next decides this work."""
    gate = GateSpec(
        id="P1",
        name="Handed in; what a person answers next decides it",
        kind=GateKind.COMMAND,
        command="git log -1 --oneline",
    )
    return Group(group.title, group.steps, (gate,), group.asks)
