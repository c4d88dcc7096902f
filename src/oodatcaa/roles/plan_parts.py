"""What can be said about a plan of which only some parts can be read.

Whoever wrote it gets every problem at once: a wrong word in one place must not hide, until the next
answer, that a gate decides nothing in another.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from oodatcaa.domain.evidence import GateSpec
from oodatcaa.domain.goal_gates import goal_gates
from oodatcaa.domain.plan import Plan, Step, gate_id_problems, plan_problems

R = TypeVar("R", GateSpec, Step)


@dataclass(frozen=True)
class ReadableParts:
    """`plan` holds the fields named in `known`, and no others; `steps` and `gates` are those that
    can be read, also where others beside them can not."""

    plan: Plan
    known: frozenset[str]
    steps: tuple[Step, ...]
    gates: tuple[GateSpec, ...]
    problems: tuple[str, ...]
    """What is incoherent between the known fields."""


def readable_parts(data: dict[str, Any]) -> ReadableParts:
    values: dict[str, Any] = {}
    known: set[str] = set()
    for name, field in Plan.model_fields.items():
        if name not in data:
            if not field.is_required():
                values[name] = field.get_default(call_default_factory=True)
                known.add(name)
            continue
        try:
            values[name] = _adapter(name).validate_json(json.dumps(data[name]))
            known.add(name)
        except ValidationError:
            continue
    # Each value was validated; what is missing is never looked at.
    plan = Plan.model_construct(_fields_set=set(values), **values)
    rows = _gate_rows(data)
    problems = [*plan_problems(plan, frozenset(known))]
    if not {"exit_gates", "test_plan"} <= known:
        problems += gate_id_problems(rows)
    gates = [gate for _, found in rows for gate in found]
    if "goals" in known:
        gates += goal_gates(plan.goals)
    steps = plan.steps if "steps" in known else _readable(Step, data.get("steps"))
    return ReadableParts(
        plan, frozenset(known), steps, tuple(dict.fromkeys(gates)), tuple(dict.fromkeys(problems))
    )


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    field = Plan.model_fields[name]
    kind: Any = field.annotation
    for item in field.metadata:
        kind = Annotated[kind, item]
    return TypeAdapter(kind)


def _gate_rows(data: dict[str, Any]) -> list[tuple[str, tuple[GateSpec, ...]]]:
    """(place, its gates), as `gate_id_problems` takes them."""
    exits, tests = data.get("exit_gates"), data.get("test_plan")
    rows = []
    if isinstance(exits, dict):
        rows += [(str(place), _readable(GateSpec, found)) for place, found in exits.items()]
    if isinstance(tests, dict):
        both = [_readable(GateSpec, tests.get(key)) for key in ("acceptance", "quality_gates")]
        rows.append(("the test plan", (*both[0], *both[1])))
    return rows


def _readable(kind: type[R], rows: Any) -> tuple[R, ...]:
    found = []
    for row in rows if isinstance(rows, list) else ():
        try:
            found.append(kind.model_validate_json(json.dumps(row)))
        except ValidationError:
            continue
    return tuple(found)
