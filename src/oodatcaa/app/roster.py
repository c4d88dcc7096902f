"""Who fills the roles: `agents/*.md` and `[runners]`, read together and checked together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from oodatcaa.domain.agents import (
    BUILTIN,
    AcpSpec,
    AgentDefinition,
    OpenAISpec,
    RunnerSpec,
)
from oodatcaa.domain.budgets import Budgets, unmeasurable
from oodatcaa.domain.definition import explain, parse_definition
from oodatcaa.domain.task import Role
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.config import Config
from oodatcaa.kit.files import read_page
from oodatcaa.runners.presets import command_spec, presets

FOLDER = "agents"


@dataclass(frozen=True)
class Roster:
    """Every agent of the project. A role without a file is filled by the built-in one."""

    definitions: tuple[AgentDefinition, ...]
    runners: Mapping[str, RunnerSpec]

    def of_role(self, role: Role) -> tuple[AgentDefinition, ...]:
        """The role's agents: the one named like the role first, then by name."""
        found = [item for item in self.definitions if item.role is role]
        found.sort(key=lambda item: (item.name != role.value, item.name))
        return tuple(found) or (_builtin(role),)

    def acting(self, role: Role, name: str) -> AgentDefinition:
        """The definition behind an agent's name: `builder-claude` and `builder-claude-A` are the
        agent of agents/builder-claude.md; a name that fits none is the role's first agent."""
        fits = [
            item
            for item in self.of_role(role)
            if name == item.name or name.startswith(item.name + "-")
        ]
        return max(fits, key=lambda item: len(item.name)) if fits else self.of_role(role)[0]

    def external(self, role: Role, name: str, wanted: str = "") -> AgentDefinition | None:
        """Who does work that nothing built in can do: the agent that the plan wants, else the
        acting one, else the role's first external one. None when there is none."""
        acting = self.acting(role, name)
        others = [item for item in self.of_role(role) if not item.builtin]
        if wanted:
            return next((item for item in others if item.name == wanted), None)
        return acting if not acting.builtin else next(iter(others), None)

    def spec(self, definition: AgentDefinition) -> RunnerSpec:
        return self.runners[definition.runner]


def _builtin(role: Role) -> AgentDefinition:
    return AgentDefinition(name=role.value, description="built in", role=role)


def load_roster(root: Path, config: Config) -> Roster:
    """Raises OodatcaaError (agents.invalid) listing every problem of every file and runner."""
    problems: list[str] = []
    runners = _runners(config, problems)
    definitions = _definitions(root / FOLDER, problems)
    for item in definitions:
        problems += _fit(item, runners, config.budgets)
    if problems:
        raise OodatcaaError(
            "agents.invalid",
            f"the crew's agents have {len(problems)} problem{'s' if len(problems) != 1 else ''}",
            hint="mend agents/*.md and [runners] in .oodatcaa/config.toml; docs/how-to/agents.md",
            details=problems,
        )
    return Roster(definitions, runners)


def _runners(config: Config, problems: list[str]) -> dict[str, RunnerSpec]:
    """The presets by their own names, and what config.toml adds or changes."""
    found: dict[str, RunnerSpec] = dict(presets())
    for name, values in config.runners.items():
        place = f"config.toml: runners.{name}"
        if name == BUILTIN:
            problems.append(f"{place}: this name means the built-in role")
            continue
        spec, wrong = _spec(values)
        problems += [f"{place}.{line}" for line in wrong]
        if spec is not None:
            found[name] = spec
    return found


def _spec(values: dict[str, Any]) -> tuple[RunnerSpec | None, list[str]]:
    kind = values.get("kind", "command")
    kinds: dict[str, type[AcpSpec] | type[OpenAISpec]] = {"acp": AcpSpec, "openai": OpenAISpec}
    if kind == "command":
        rest = {key: value for key, value in values.items() if key not in ("kind", "preset")}
        return command_spec(str(values.get("preset", "")), rest)
    if kind not in kinds:
        return None, [f"kind: unknown {kind!r}; known are command, acp and openai"]
    try:
        return kinds[kind].model_validate(values), []
    except ValidationError as error:
        return None, explain(error)


def _definitions(folder: Path, problems: list[str]) -> tuple[AgentDefinition, ...]:
    found: dict[str, AgentDefinition] = {}
    for path in sorted(folder.glob("*.md")):
        source = f"{FOLDER}/{path.name}"
        if path.name.lower() == "readme.md":
            continue
        try:
            text = read_page(path)
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{source}: can not be read: {error}")
            continue
        definition, wrong = parse_definition(text, source)
        problems += wrong
        if definition is None:
            continue
        if definition.name in found:
            other = found[definition.name].source
            problems.append(f"{source}: name: {definition.name!r} is taken by {other}")
        found[definition.name] = definition
    return tuple(found.values())


def _fit(
    item: AgentDefinition, runners: Mapping[str, RunnerSpec], budgets: Budgets
) -> tuple[str, ...]:
    """What is wrong between a definition, its runner and the budgets."""
    if item.builtin:
        return ()
    if item.role is Role.INTEGRATOR:
        return (f"{item.source}: runner: only the framework integrates; write {BUILTIN}",)
    spec = runners.get(item.runner)
    if spec is None:
        known = ", ".join(sorted([BUILTIN, *runners]))
        return (f"{item.source}: runner: unknown {item.runner!r}; known are {known}",)
    problems = []
    if item.role is Role.BUILDER and isinstance(spec, OpenAISpec):
        problems.append(f"{item.source}: runner: kind openai returns records, it can not build")
    if isinstance(spec, OpenAISpec) and not (item.model or spec.model):
        problems.append(f"{item.source}: model: is required here or in [runners.{item.runner}]")
    why = unmeasurable(budgets, item.limits, spec)
    if why:
        problems.append(f"{item.source}: limits: {why}")
    return tuple(problems)
