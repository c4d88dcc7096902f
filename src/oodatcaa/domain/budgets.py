"""Budgets: what agents may use for a subtask, a story and a sprint, and which one is reached."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from oodatcaa.domain.agents import Call, Limits, RunnerSpec, Usage
from oodatcaa.domain.base import Record


class Budgets(Record):
    """Hard limits on what external agents use. Minutes are those in which agents ran, added up
    over agents that ran beside each other."""

    subtask: Limits = Field(default=Limits(), description="for one subtask")
    story: Limits = Field(default=Limits(), description="for one story with its subtasks")
    sprint: Limits = Field(default=Limits(), description="for the whole sprint")
    unknown_usage: Literal["stop", "warn"] = Field(
        default="stop",
        description="an agent's call that did not say what it used of a token or cost budget: "
        "to a person, or only written down",
    )

    @property
    def counts_tokens(self) -> bool:
        return any(part.tokens is not None for part in (self.subtask, self.story, self.sprint))

    @property
    def counts_cost(self) -> bool:
        return any(part.cost_usd is not None for part in (self.subtask, self.story, self.sprint))


class Spent(Record):
    """What was used so far, in the same three circles."""

    subtask: Usage = Usage()
    story: Usage = Usage()
    sprint: Usage = Usage()


def total(calls: Iterable[Call]) -> Usage:
    return sum((call.usage for call in calls), Usage())


def spent(calls: Iterable[Call], *, story: str, task: str) -> Spent:
    """The ledger of one sprint, added up around one task."""
    known = tuple(calls)
    of_story = tuple(call for call in known if call.story == story)
    of_task = tuple(call for call in of_story if call.task == task)
    return Spent(subtask=total(of_task), story=total(of_story), sprint=total(known))


def over(budgets: Budgets, used: Spent) -> tuple[str, str] | None:
    """(circle, why) of the widest budget that is reached; None while all hold."""
    for circle in ("sprint", "story", "subtask"):
        why = reached(getattr(budgets, circle), getattr(used, circle))
        if why:
            return circle, f"the {circle}'s budget is used up: {why}"
    return None


def reached(limits: Limits, used: Usage) -> str:
    """`12,000 of 10,000 tokens`, or nothing while every limit holds. What is not known can not be
    held against a limit; see `unmeasurable`."""
    if limits.minutes is not None and used.seconds >= limits.minutes * 60:
        return f"{used.seconds / 60:.1f} of {limits.minutes:g} minutes"
    if limits.tokens is not None and used.tokens is not None and used.tokens >= limits.tokens:
        return f"{used.tokens:,} of {limits.tokens:,} tokens"
    known = limits.cost_usd is not None and used.cost_usd is not None
    if known and (used.cost_usd or 0) >= (limits.cost_usd or 0):
        return f"${used.cost_usd:.4f} of ${limits.cost_usd:.4f}"
    return ""


def unmeasurable(budgets: Budgets, own: Limits, spec: RunnerSpec) -> str:
    """Why these budgets could not be held for a runner: it never says what it uses."""
    if (budgets.counts_tokens or own.tokens is not None) and not spec.reports_tokens:
        return "there is a token budget, but this agent does not report its tokens"
    if (budgets.counts_cost or own.cost_usd is not None) and not spec.reports_cost:
        return "there is a cost budget, but this agent reports no cost and has no prices"
    return ""


def unsaid(budgets: Budgets, own: Limits, used: Usage) -> str:
    """Which budget a call that is over can not be held to, for it did not say what it used."""
    missing = []
    if (budgets.counts_tokens or own.tokens is not None) and used.tokens is None:
        missing.append("tokens")
    if (budgets.counts_cost or own.cost_usd is not None) and used.cost_usd is None:
        missing.append("cost")
    if not missing:
        return ""
    return f"there is a budget, but the call did not say its {' and '.join(missing)}"
