"""`.oodatcaa/config.toml`: read once, validated whole, every problem reported at once."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from oodatcaa.domain.base import NonEmpty, Record
from oodatcaa.domain.budgets import Budgets
from oodatcaa.domain.evidence import Bytes, ResourceLimits
from oodatcaa.domain.gate_presets import PRESETS, preset_for
from oodatcaa.domain.notices import NoticeKind
from oodatcaa.domain.policy import LeaseMinutes, Policy, WipLimits
from oodatcaa.domain.task import Approval
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.files import read_page

PRESETS_WITH_COUNTS = frozenset(name for name, preset in PRESETS.items() if preset.counting)
CONFIG_PATH = Path(".oodatcaa") / "config.toml"


class QualityGate(Record):
    """A check of the project that has to succeed before work is accepted.

    `preset` names a tool whose exit codes and findings are known (docs/reference/gates.md); its
    name, command and time limit are then the defaults.
    """

    preset: str = Field(default="", description="a tool that is known, see docs/reference/gates.md")
    name: str = Field(default="", description="what reports call it; the preset's by default")
    command: str = Field(
        default="",
        description="shell command, run in the root of a fresh worktree; exit code 0 = passed, "
        "unless the preset knows better; the preset's by default",
    )
    timeout_seconds: PositiveInt | None = Field(
        default=None,
        description="a gate that runs longer is stopped and counts as crashed; 600 or the preset's",
    )
    baseline: bool = Field(
        default=False, description="passes when it is no worse than the target branch"
    )
    limits: ResourceLimits | None = Field(
        default=None, description="of this gate, in place of those in `[gates.limits]`"
    )

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
        description="of each process of a gate; a gate of a plan may have tighter ones, the "
        "project's own gates any",
    )
    timeout_seconds: PositiveInt = Field(
        default=7200, description="the longest that a gate of a plan may take, whatever it says"
    )
    packages: tuple[NonEmpty, ...] | None = Field(
        default=None,
        description="packages whose import place is checked; left out = found by itself",
    )
    quality: tuple[QualityGate, ...] = Field(
        default=(), description="the project's own checks, one `[[gates.quality]]` block each"
    )


class GitConfig(Record):
    """How the crew commits: unsigned and without hooks, for a passphrase prompt would hang it."""

    target: str = Field(default="", description="branch to integrate into; empty = the current one")
    sign: bool = Field(default=False, description="sign the crew's commits, as git is set up to")
    hooks: bool = Field(default=False, description="run your git hooks on the crew's commits")


class AgentsConfig(Record):
    """How external agents are called; `agents/<name>.md` says who fills a role."""

    minutes: PositiveFloat = Field(
        default=60, description="one call, unless its own limits say otherwise"
    )
    silence_minutes: PositiveFloat = Field(default=15, description="it may print nothing for this")
    memory_bytes: Bytes = Field(
        default=16_000_000_000,
        description="one agent's whole process tree, unless its own limits say otherwise",
    )
    retries: int = Field(default=3, ge=0, description="after an error of the agent, per claim")
    isolation: Literal["refuse", "warn"] = Field(
        default="refuse",
        description="an attempt during which something outside of its worktree changed",
    )
    backoff_seconds: PositiveFloat = Field(default=5, description="doubled with every retry")
    backoff_max_seconds: PositiveFloat = Field(
        default=300, description="the longest wait between two retries"
    )
    output_retries: int = Field(
        default=3, ge=0, le=3, description="times that invalid output goes back with all its errors"
    )


class CrewConfig(Record):
    """How many agents of each role `oodatcaa run` starts (never more than the WIP limit works)."""

    planner: int = Field(default=1, ge=0, description="planner processes")
    builder: int = Field(default=2, ge=0, description="builder processes")
    tester: int = Field(default=1, ge=0, description="tester processes")
    refiner: int = Field(default=1, ge=0, description="refiner processes")
    integrator: int = Field(default=1, ge=0, description="integrator processes")


class NotifyConfig(Record):
    """Where people are told, as URLs of apprise; `$NAME` in them is taken from the environment."""

    urls: tuple[NonEmpty, ...] = Field(default=(), description="where to; empty = nowhere")
    events: tuple[NoticeKind, ...] = Field(
        default=tuple(NoticeKind), description="what is told; everything by default"
    )


class TrainingConfig(Record):
    """How training children are watched, and how fast they may compute."""

    sample_interval_ms: int = Field(
        default=25,
        ge=10,
        le=100,
        description="milliseconds between two looks of the memory watcher; never more than 50 in "
        "effect",
    )
    profile_tokens: PositiveInt = Field(
        default=1024, description="tokens per step of the framework story's measured run on a CPU"
    )
    fast_cpu: bool = Field(default=True, description="the CPU speed path; losses are the same")
    control_group: bool = Field(
        default=True,
        description="Linux: let the kernel hold training at exactly the limit, where a control "
        "group can be made",
    )
    trackers: tuple[Literal["mlflow", "tensorboard", "wandb"], ...] = Field(
        default=(),
        description="where finished runs are written to as well, in folders below models/tracking; "
        "extra `tracking`",
    )


class ImportsConfig(Record):
    """Which commands of plans made elsewhere (imported, by an agent, handed in) may run unasked."""

    allow: tuple[NonEmpty, ...] = Field(
        default=(), description="a whole command, or the first words of a plain one: 'pytest'"
    )


class Config(Record):
    """Every key has a default: an empty file is a valid configuration."""

    wip: WipLimits = Field(
        default=WipLimits(),
        description="tasks of one role that may be in work at once, enforced inside the claim",
    )
    lease_minutes: LeaseMinutes = Field(
        default=LeaseMinutes(),
        description="time to live of a claim: one that is not renewed for this long runs out",
    )
    heartbeat_seconds: PositiveFloat = Field(
        default=15, description="how often an agent renews the lease of what it works on"
    )
    max_expiries: PositiveInt = Field(
        default=3,
        description="leases a task may lose in a row before it waits for a person",
    )
    gates: GatesConfig = Field(
        default=GatesConfig(), description="where gates run, and the project's own ones"
    )
    git: GitConfig = Field(default=GitConfig(), description="how the crew commits and merges")
    runners: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="how agents are run, by name; held to its kind by the roster",
    )
    agents: AgentsConfig = Field(
        default=AgentsConfig(), description="how external agents are called"
    )
    budgets: Budgets = Field(
        default=Budgets(), description="what external agents may use; left out = no limit"
    )
    crew: CrewConfig = Field(
        default=CrewConfig(), description="how many agents of each role `oodatcaa run` starts"
    )
    training: TrainingConfig = Field(
        default=TrainingConfig(), description="the training children and their watcher"
    )
    notify: NotifyConfig = Field(
        default=NotifyConfig(), description="who is told when the crew needs a person or ends"
    )
    approval: Approval = Field(
        default=Approval.NONE, description="where stories wait for a person: plan, merge or none"
    )
    imports: ImportsConfig = Field(
        default=ImportsConfig(), description="how plans of other tools are taken in"
    )

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
        data = tomllib.loads(read_page(path))
    except FileNotFoundError:
        return Config()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
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
