"""The tester's work: which checks decide, beyond what the plan already lists, and a veto if needed.

The framework runs every check itself; nothing here can pass anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from oodatcaa.domain.evidence import GateKind, GateSpec
from oodatcaa.domain.goal_gates import goal_gates
from oodatcaa.domain.plan import Plan


@dataclass(frozen=True)
class Examination:
    """All gates of a test subtask, and reasons against accepting whatever they say."""

    gates: tuple[GateSpec, ...]
    veto: tuple[str, ...]


def examine(
    plan: Plan, committed: tuple[str, ...], links_out: Mapping[str, str] | None = None
) -> Examination:
    """Every acceptance criterion, quality gate and goal, plus: all promised documents are there.

    `committed` are the paths at the submitted commit, `links_out` its new links to what is not
    in it. Vetoes what no gate would notice: live
    state, weights or data in git (rules 6 and 9 of the design).
    """
    goals = goal_gates(plan.goals)
    gates = [*plan.test_plan.acceptance, *plan.test_plan.quality_gates, *goals]
    covered = {path for gate in gates if gate.kind is GateKind.FILES for path in gate.paths}
    missing = tuple(path for path in plan.promised_files if path not in covered)
    if missing:
        gates.append(
            GateSpec(
                id="TX1",
                name="every promised deliverable is at the commit",
                kind=GateKind.FILES,
                paths=missing,
                statement="added by the tester: the plan promises these files",
            )
        )
    forbidden = [path for path in committed if _never_in_git(path)]
    veto = [f"{path} must never be in git" for path in forbidden[:20]]
    leading = list((links_out or {}).items())[:20]
    veto += [f"{path} leads out of the repository: {where}" for path, where in leading]
    return Examination(gates=tuple(gates), veto=tuple(veto))


def _never_in_git(path: str) -> bool:
    if path.startswith((".oodatcaa/work/", ".oodatcaa/worktrees/", "models/runs/", "models/data/")):
        return True
    return path.endswith((".safetensors", ".gguf", ".npz"))
