"""What follows a failure of work that is not a training: a quick fix, a start-over, or a person.

A pure table over the class of the failure and the number of the round. Trainings have their own
ladder, see `adaptation`.
"""

from __future__ import annotations

from enum import StrEnum

from oodatcaa.domain.task import Failure


class FailureClass(StrEnum):
    GATE = "gate failed"
    CRASHED = "crashed"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    CONFLICT = "conflict"
    AGENT_ERROR = "agent error"
    INVALID_OUTPUT = "invalid output"
    BUDGET = "budget"
    TRESPASS = "trespass"
    PERSON = "only a person can help"


class Way(StrEnum):
    QUICK_FIX = "quick fix"
    """The same plan; what failed is done again, by the same agent in the same session."""
    START_OVER = "start over"
    """Back to the planner, with the lesson."""
    HUMAN = "human"


LADDER: dict[FailureClass, tuple[Way, ...]] = {
    FailureClass.GATE: (Way.QUICK_FIX, Way.QUICK_FIX, Way.START_OVER),
    FailureClass.CRASHED: (Way.QUICK_FIX, Way.START_OVER),
    FailureClass.TIMEOUT: (Way.QUICK_FIX, Way.START_OVER),
    FailureClass.MEMORY: (Way.QUICK_FIX, Way.START_OVER),
    FailureClass.CONFLICT: (Way.QUICK_FIX, Way.QUICK_FIX),
    FailureClass.AGENT_ERROR: (Way.QUICK_FIX,),
    FailureClass.INVALID_OUTPUT: (Way.QUICK_FIX, Way.START_OVER),
    FailureClass.BUDGET: (Way.START_OVER,),
    FailureClass.TRESPASS: (Way.QUICK_FIX, Way.QUICK_FIX, Way.QUICK_FIX),
    FailureClass.PERSON: (),
}
"""Class -> what round 1, 2, … tries; after the last entry a person decides."""

NEVER_TWICE = frozenset({FailureClass.TRESPASS})
"""After a second failure of such a class a person decides, whatever the round: whoever wrote
outside of its worktree again does not do so by accident."""

KINDS: dict[str, FailureClass] = {
    "gate": FailureClass.GATE,
    "veto": FailureClass.GATE,
    "refused": FailureClass.GATE,
    "command": FailureClass.GATE,
    "merge": FailureClass.CONFLICT,
    "conflict": FailureClass.CONFLICT,
    "timeout": FailureClass.TIMEOUT,
    "memory": FailureClass.MEMORY,
    "memory_gate": FailureClass.MEMORY,
    "agent_error": FailureClass.AGENT_ERROR,
    "invalid_output": FailureClass.INVALID_OUTPUT,
    "isolation": FailureClass.TRESPASS,
    "isolation.unreadable": FailureClass.TRESPASS,
    "budget": FailureClass.BUDGET,
    "not_run": FailureClass.PERSON,
    "denied": FailureClass.PERSON,
    "agent_missing": FailureClass.PERSON,
    "disk_full": FailureClass.PERSON,
    "bad_input": FailureClass.PERSON,
}
"""Kinds of `Failure`; every other kind is a crash."""


UNKNOWN = "unknown usage"
"""The circle of a call that did not say what it used."""


def classify(failure: Failure) -> FailureClass:
    """The class of a failure. A used-up budget of a story or sprint is a person's business: a new
    plan would have none of it left. So is one that nobody can hold an agent to."""
    if failure.kind == "budget" and failure.layer in ("story", "sprint", UNKNOWN):
        return FailureClass.PERSON
    return KINDS.get(failure.kind, FailureClass.CRASHED)


def next_way(found: FailureClass, *, round: int, max_rounds: int, repeated: bool = False) -> Way:
    """What round `round` (1 = the first) does about a failure of this class; `repeated` when an
    earlier round of the story was about the same class."""
    ladder = LADDER[found]
    if repeated and found in NEVER_TWICE:
        return Way.HUMAN
    if round > max_rounds or round > len(ladder):
        return Way.HUMAN
    return ladder[round - 1]


def bounded(proposed: Way, allowed: Way) -> Way:
    """An agent may propose a wider way than the policy's, never a narrower one."""
    order = list(Way)
    return max(proposed, allowed, key=order.index)
