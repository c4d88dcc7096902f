"""Gates: what decides a story, and which story decides which of the objective's bounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from oodatcaa.domain.board import Board
from oodatcaa.domain.evidence import Bound, GateKind, GateSpec
from oodatcaa.domain.objective import METRICS, Objective
from oodatcaa.domain.plan import Step
from oodatcaa.domain.task import StoryKind

UNNUMBERED = "-"

DECIDED_BY: dict[str, tuple[StoryKind, ...]] = {
    "test_loss_drop": (StoryKind.EVALUATE, StoryKind.TRAIN, StoryKind.PUBLISH),
    "test_loss": (StoryKind.EVALUATE, StoryKind.TRAIN, StoryKind.PUBLISH),
    "peak_memory": (StoryKind.TRAIN, StoryKind.EVALUATE, StoryKind.PUBLISH),
    "tokens_per_second": (StoryKind.TRAIN, StoryKind.EVALUATE, StoryKind.PUBLISH),
    "train_minutes": (StoryKind.TRAIN, StoryKind.EVALUATE, StoryKind.PUBLISH),
}
"""The kinds of story that can decide a metric, the best one first."""

NAMES = {
    "test_loss_drop": "Test loss falls",
    "test_loss": "Test loss of the adapter",
    "peak_memory": "Peak memory of training",
    "tokens_per_second": "Training speed",
    "train_minutes": "Duration of training",
}


def metric(
    name: str, bound: Bound | str, statement: str, *, critical: bool = False, timeout: int = 600
) -> GateSpec:
    parsed = Bound.parse(bound) if isinstance(bound, str) else bound
    critical = critical or parsed.critical
    return GateSpec(
        id=UNNUMBERED,
        name=name,
        kind=GateKind.METRIC,
        bound=parsed.evolve(critical=critical),
        critical=critical,
        timeout_seconds=timeout,
        statement=statement,
    )


def command(name: str, line: str, statement: str, *, timeout: int = 600) -> GateSpec:
    return GateSpec(
        id=UNNUMBERED,
        name=name,
        kind=GateKind.COMMAND,
        command=line,
        timeout_seconds=timeout,
        statement=statement,
    )


def files(name: str, paths: Iterable[str], statement: str = "") -> GateSpec:
    promised = tuple(paths)
    return GateSpec(
        id=UNNUMBERED,
        name=name,
        kind=GateKind.FILES,
        paths=promised,
        statement=statement or f"At the commit there are: {', '.join(promised)}",
    )


def files_of(steps: Sequence[Step], numbers: Iterable[int]) -> tuple[GateSpec, ...]:
    """One FILES gate for everything that these steps deliver; none when they deliver nothing."""
    wanted = set(numbers)
    paths = [path for step in steps if step.number in wanted for path in step.deliverables]
    return (files("Deliverables present", paths),) if paths else ()


def numbered(prefix: str, gates: Iterable[GateSpec]) -> tuple[GateSpec, ...]:
    """`AC` -> AC1, AC2, …; `X-B01-` -> X-B01-1, …"""
    return tuple(gate.evolve(id=f"{prefix}{n}") for n, gate in enumerate(gates, 1))


def quality(gates: Sequence[GateSpec]) -> tuple[GateSpec, ...]:
    """The project's own gates with ids G1..; ids of that form are a person's and stay."""
    ids = [gate.id for gate in gates]
    named = all(i.startswith("G") and i[1:].isdigit() for i in ids)
    if named and len(set(ids)) == len(ids):
        return tuple(gates)
    return numbered("G", gates)


def within(name: str, limit_bytes: int, text: str) -> Bound:
    """`name <= limit`, critical: the memory limit as a bound on one metric."""
    return Bound(
        metric=name,
        op="<=",
        value=float(limit_bytes),
        text=text.replace(" ", "") or f"{limit_bytes}B",
        critical=True,
    )


def limit_bound(objective: Objective, name: str = "peak_memory") -> Bound:
    return within(name, objective.memory_limit_bytes, objective.memory_limit_text)


def home_of(name: str, board: Board) -> StoryKind:
    """The kind of story that decides a metric in this sprint."""
    kinds = {story.kind for story in board.stories}
    wanted = DECIDED_BY[name]
    return next((kind for kind in wanted if kind in kinds), wanted[0])


def asked_of(kind: StoryKind, objective: Objective, board: Board) -> tuple[Bound, ...]:
    """The objective's bounds that a story of this kind decides, each once.

    Equal bounds are merged; one critical mark among them is enough.
    """
    merged: dict[tuple[str, str, float], Bound] = {}
    for bound in objective.acceptance:
        if home_of(bound.metric, board) is not kind:
            continue
        key = (bound.metric, bound.op, bound.value)
        earlier = merged.get(key)
        critical = bound.critical or (earlier is not None and earlier.critical)
        merged[key] = (earlier or bound).evolve(critical=critical)
    return tuple(merged.values())


def asked_gates(bounds: Iterable[Bound], *, timeout: int = 600) -> tuple[GateSpec, ...]:
    """Acceptance criteria for the objective's own bounds."""
    return tuple(
        metric(
            NAMES[bound.metric],
            bound,
            f"OBJECTIVE.md asks for {bound}: {METRICS[bound.metric]}"
            + (
                "; the paired bootstrap interval must exclude 0"
                if bound.metric == "test_loss_drop"
                else ""
            ),
            timeout=timeout,
        )
        for bound in bounds
    )


def memory_gates(kind: StoryKind, objective: Objective, board: Board) -> tuple[GateSpec, ...]:
    """peak_memory within the limit (critical), then the objective's other bounds for `kind`."""
    limit = limit_bound(objective)
    rest = [
        bound
        for bound in asked_of(kind, objective, board)
        if (bound.metric, bound.op, bound.value) != (limit.metric, limit.op, limit.value)
    ]
    statement = (
        f"The measured peak of the training process tree stays within {limit.text} "
        f"({objective.memory_limit_bytes:,} bytes)"
    )
    return (
        metric("Memory gate", limit, statement, critical=True),
        *asked_gates(rest),
    )


def predictions(objective: Objective) -> tuple[GateSpec, ...]:
    """The objective's upper bounds on peak memory that are tighter than the limit, as forecasts."""
    seen: set[tuple[str, float]] = set()
    gates = []
    for bound in objective.acceptance:
        tighter = bound.value < objective.memory_limit_bytes or bound.op == "<"
        if bound.metric != "peak_memory" or bound.op not in ("<", "<=") or not tighter:
            continue
        if bound.value > objective.memory_limit_bytes or (bound.op, bound.value) in seen:
            continue
        seen.add((bound.op, bound.value))
        forecast = bound.evolve(metric="predicted_peak_memory")
        gates.append(
            metric(
                "Predicted peak, as the objective asks",
                forecast,
                f"The estimate keeps what OBJECTIVE.md asks of the run: {bound}",
            )
        )
    return tuple(gates)
