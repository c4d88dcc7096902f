"""Which commands of plans made elsewhere may run unasked; a person is asked about the others."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from oodatcaa.app.desk import quality_gates
from oodatcaa.app.project import Project
from oodatcaa.domain.gate_presets import preset_for
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.task import Story
from oodatcaa.roles.desk import Agents
from oodatcaa.roles.tester import Examination
from oodatcaa.views.units import listing

_OPERATORS = frozenset("|&;<>()$`\\\n\"'*?[]#~=%!{}")


def is_allowed(command: str, allowed: Sequence[str]) -> bool:
    """Whether the project's own list lets a command run unasked.

    An entry is a command word for word, or the first words of a plain one: nothing that a shell
    would read more into (`;`, `|`, `$`, quotes, a second line) is ever matched by its beginning.
    """
    if command in allowed:
        return True
    if _OPERATORS & set(command):
        return False
    words = shlex.split(command)
    return any(entry and words[: len(entry.split())] == entry.split() for entry in allowed)


def is_known_check(command: str) -> bool:
    """A plain call of a tool that has a preset, by its own name or through {python}, on what is in
    the project: it reads that, or runs the tests in it, as every gate does."""
    plain = command.replace("{python}", "python")
    if (_OPERATORS - set("=[]")) & set(plain) or preset_for(plain) is None:
        return False
    first, *rest = plain.split()
    return "/" not in first and "=" not in first and not any(map(_leads_out, rest))


def _leads_out(word: str) -> bool:
    """A test or a setting that is not in the commit proves nothing about it."""
    places = [word, word.partition("=")[2]]
    return any(place.startswith("/") or ".." in place.split("/") for place in places)


def only_allowed(
    project: Project, agents: Agents, plan: Plan, before: Examination, after: Examination
) -> Examination:
    """What a reviewer added, without the commands that nobody allowed: they are named in the
    history, and its veto is another way to say no."""
    known = set(plan.commands)
    added = [gate for gate in after.gates if gate not in before.gates]
    dropped = [
        gate for gate in added if gate.command not in known and not _unasked(project, gate.command)
    ]
    if dropped:
        agents.note(
            f"not run, because nobody allowed it: {listing([gate.command for gate in dropped])}",
            tuple(f"{gate.id} {gate.name}: {gate.command}" for gate in dropped),
        )
    kept = tuple(gate for gate in after.gates if gate not in dropped)
    return Examination(gates=kept, veto=after.veto)


def _unasked(project: Project, command: str) -> bool:
    return is_known_check(command) or is_allowed(command, project.config.imports.allow)


def unapproved(project: Project, story: Story, plan: Plan) -> tuple[str, ...]:
    """The plan's commands that nobody allowed: not the project's own checks, not in its list, and
    not in the story's last accepted plan, which somebody let through."""
    known: set[str] = set()
    if story.plan_version:
        known |= set(project.plans.load(story.id, story.plan_version).commands)
    known |= {gate.command for gate in quality_gates(project)}
    return tuple(
        line for line in plan.commands if line not in known and not _unasked(project, line)
    )
