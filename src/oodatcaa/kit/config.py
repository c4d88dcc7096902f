"""`.oodatcaa/config.toml`: read once, validated whole, every problem reported at once."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from oodatcaa.domain.base import NonEmpty, Record
from oodatcaa.domain.budgets import Budgets
from oodatcaa.domain.evidence import ResourceLimits
from oodatcaa.domain.gate_presets import PRESETS, preset_for
from oodatcaa.domain.notices import NoticeKind
from oodatcaa.domain.policy import LeaseMinutes, Policy, WipLimits
from oodatcaa.domain.task import Approval
from oodatcaa.errors import OodatcaaError

PRESETS_WITH_COUNTS = frozenset(name for name, preset in PRESETS.items() if preset.counting)
CONFIG_PATH = Path(".oodatcaa") / "config.toml"


class QualityGate(Record):
    """A check of the project that has to succeed before work is accepted.

    `preset` names a tool whose exit codes and findings are known (docs/reference/gates.md); its
    name, command and time limit are then the defaults.
    """

    preset: str = ""
    name: str = ""
    command: str = ""
    timeout_seconds: PositiveInt | None = None
    baseline: bool = Field(
        default=False, description="passes when it is no worse than the target branch"
    )
    limits: ResourceLimits | None = None

    @model_validator(mode="after")
    def _can_run(self) -> QualityGate:
        known = ", ".join(PRESETS)
        if self.preset and self.preset not in PRESETS:
            raise ValueError(f"unknown preset {self.preset!r}; there are {known}")
        if not self.preset and not (self.name.strip() and self.command.strip()):
            raise ValueError(f"needs a name and a command, or a preset ({known})")
        if self.baseline and preset_for(self.command, self.preset) is None:
            raise ValueError(f"a baseline needs findings to count: name a preset ({known})")
        if self.baseline and not PRESETS_WITH_COUNTS & {self._tool()}:
            raise ValueError(f"the findings of {self._tool()} can not be counted for a baseline")
        return self

    def _tool(self) -> str:
        preset = preset_for(self.command, self.preset)
        return preset.name if preset else ""


DEPENDENCY_FILES = (
    "uv.lock",
    "poetry.lock",
    "pdm.lock",
    "pylock*.toml",
    "Pipfile.lock",
    "requirements*.txt",
    "pyproject.toml",
    "setup.py",
    "setup.cfg",
)


class GatesConfig(Record):
    """Where gates run: a clean worktree, with the project's code imported from it."""

    python: str = Field(
        default="", description="interpreter for the gates; empty = the one that runs the crew"
    )
    setup: tuple[NonEmpty, ...] = Field(
        default=(),
        description="commands run in the fresh worktree before its gates; with {env} in them they "
        "fill a cached environment, made again when a lock or project file changes",
    )
    cache_by: tuple[NonEmpty, ...] = Field(
        default=DEPENDENCY_FILES, description="files whose content the cached environment is for"
    )
    limits: ResourceLimits = Field(
        default=ResourceLimits(memory_bytes=16_000_000_000, file_bytes=8_000_000_000),
        description="of each process of a gate, unless the gate has its own",
    )
    packages: tuple[NonEmpty, ...] | None = Field(
        default=None, description="packages whose import place is checked; None = found by itself"
    )
    quality: tuple[QualityGate, ...] = ()


class GitConfig(Record):
    """How the crew commits: unsigned and without hooks, for a passphrase prompt would hang it."""

    target: str = Field(default="", description="branch to integrate into; empty = the current one")
    sign: bool = False
    hooks: bool = False


class AgentsConfig(Record):
    """How external agents are called; `agents/<name>.md` says who fills a role."""

    minutes: PositiveFloat = Field(
        default=60, description="one call, unless its own limits say otherwise"
    )
    silence_minutes: PositiveFloat = Field(default=15, description="it may print nothing for this")
    retries: int = Field(default=3, ge=0, description="after an error of the agent, per claim")
    isolation: Literal["refuse", "warn"] = Field(
        default="refuse",
        description="an attempt during which something outside of its worktree changed",
    )
    backoff_seconds: PositiveFloat = Field(default=5, description="doubled with every retry")
    backoff_max_seconds: PositiveFloat = 300
    output_retries: int = Field(
        default=3, ge=0, le=3, description="times that invalid output goes back with all its errors"
    )


class CrewConfig(Record):
    """How many agents of each role `oodatcaa run` starts (never more than the WIP limit works)."""

    planner: int = Field(default=1, ge=0)
    builder: int = Field(default=2, ge=0)
    tester: int = Field(default=1, ge=0)
    refiner: int = Field(default=1, ge=0)
    integrator: int = Field(default=1, ge=0)


class NotifyConfig(Record):
    """Where people are told, as URLs of apprise; `$NAME` in them is taken from the environment."""

    urls: tuple[NonEmpty, ...] = ()
    events: tuple[NoticeKind, ...] = tuple(NoticeKind)


class TrainingConfig(Record):
    sample_interval_ms: int = Field(
        default=25, ge=10, le=100, description="memory watcher; never more than 50 in effect"
    )
    profile_tokens: PositiveInt = Field(
        default=1024, description="tokens per step of the measured memory probe on a CPU"
    )
    fast_cpu: bool = Field(default=True, description="the CPU speed path; losses are the same")


class ImportsConfig(Record):
    """Which commands of imported plans may run without being asked about."""

    allow: tuple[NonEmpty, ...] = Field(
        default=(), description="a whole command, or the first words of a plain one: 'pytest'"
    )


class Config(Record):
    """Every key has a default: an empty file is a valid configuration."""

    wip: WipLimits = WipLimits()
    lease_minutes: LeaseMinutes = LeaseMinutes()
    heartbeat_seconds: PositiveFloat = 15
    max_expiries: PositiveInt = 3
    gates: GatesConfig = GatesConfig()
    git: GitConfig = GitConfig()
    runners: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="how agents are run; held to its kind by the roster"
    )
    agents: AgentsConfig = AgentsConfig()
    budgets: Budgets = Budgets()
    notify: NotifyConfig = NotifyConfig()
    crew: CrewConfig = CrewConfig()
    approval: Approval = Field(
        default=Approval.NONE, description="where stories wait for a person: plan, merge or none"
    )
    training: TrainingConfig = TrainingConfig()
    imports: ImportsConfig = ImportsConfig()

    @property
    def policy(self) -> Policy:
        return Policy(
            wip=self.wip,
            lease_minutes=self.lease_minutes,
            heartbeat_seconds=self.heartbeat_seconds,
            max_expiries=self.max_expiries,
        )


def load_config(root: Path) -> Config:
    """The project's configuration; the defaults when there is no file.

    Raises OodatcaaError (config.invalid) listing every problem.
    """
    path = root / CONFIG_PATH
    hint = f"mend {CONFIG_PATH}; docs/reference/config.md lists every key"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Config()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OodatcaaError("config.invalid", f"{CONFIG_PATH}: {error}", hint=hint) from error
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in item['loc'])}: "
            + ("unknown key" if item["type"] == "extra_forbidden" else item["msg"])
            for item in error.errors()
        ]
        raise OodatcaaError(
            "config.invalid",
            f"{CONFIG_PATH} has {len(problems)} problem{'s' if len(problems) != 1 else ''}",
            hint=hint,
            details=problems,
        ) from error
