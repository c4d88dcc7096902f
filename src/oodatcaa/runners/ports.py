"""What every runner offers, and what it is told while it works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from oodatcaa.domain.agents import Order, Turn, Usage


def _nothing(_: Usage) -> str:
    return ""


def _never() -> bool:
    return False


def _silent(_: str) -> None:
    return None


@dataclass(frozen=True)
class Watch:
    """`over_budget` is asked about every new usage and at least once a second: a reason ends the
    call. `note` is told what a person may want to read later, a permission for instance."""

    over_budget: Callable[[Usage], str] = _nothing
    should_stop: Callable[[], bool] = _never
    note: Callable[[str], None] = _silent


class Runner(Protocol):
    """Runs one call of an agent to its end. Never raises for what the agent does."""

    @property
    def can_resume(self) -> bool: ...

    def run(self, order: Order, watch: Watch) -> Turn: ...
