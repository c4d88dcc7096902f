"""Gates and what the framework saw when it ran them. Nothing that an agent says is evidence."""

from __future__ import annotations

import math
import re
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveInt

from oodatcaa.domain.base import NonEmpty, Record, Sha256, Utc
from oodatcaa.domain.goals import ArtifactCheck, KeyLink
from oodatcaa.domain.waiver import Waiver as Waiver


class Verdict(StrEnum):
    """`crashed` and `not_run` are never read as passed."""

    PASSED = "passed"
    FAILED = "failed"
    CRASHED = "crashed"
    NOT_RUN = "not_run"
    WAIVED = "waived"


ACCEPTABLE = frozenset({Verdict.PASSED, Verdict.WAIVED})

OPERATORS = ("<=", ">=", "<", ">", "==")
UNITS: dict[str, float] = {
    "": 1.0,
    "b": 1.0,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "tb": 1e12,
    "kib": 1024.0,
    "mib": 1024.0**2,
    "gib": 1024.0**3,
    "%": 0.01,
    "ms": 1e-3,
    "s": 1.0,
    "min": 60.0,
    "h": 3600.0,
}
"""What a bound may be written in, and the factor to its base unit (bytes, seconds, a share)."""
_BOUND = re.compile(
    r"^\s*(?P<metric>[a-z][a-z0-9_]*)\s*(?P<op><=|>=|<|>|==)\s*"
    r"(?P<value>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<unit>(?!critical\b)[A-Za-z%]*)"
    r"(?P<critical>\s+critical)?\s*$"
)


class Bound(Record):
    """`test_loss_drop >= 0.1` or `peak_memory <= 16GB critical`; values in base units."""

    metric: NonEmpty
    op: Literal["<=", ">=", "<", ">", "=="]
    value: float
    text: NonEmpty = Field(description="the value as the person wrote it, for example 16GB")
    critical: bool = False

    @classmethod
    def parse(cls, text: str) -> Bound:
        """Raises ValueError naming what is wrong with `text`."""
        match = _BOUND.match(text)
        if match is None:
            raise ValueError(
                f"{text!r} is not a bound; write for example 'test_loss_drop >= 0.1' or "
                "'peak_memory <= 16GB critical'"
            )
        unit = match["unit"].lower()
        if unit not in UNITS:
            raise ValueError(f"{text!r}: unknown unit {match['unit']!r}")
        value = float(match["value"]) * UNITS[unit]
        if not math.isfinite(value):
            raise ValueError(f"{text!r}: the value must be finite")
        return cls.model_validate(
            {
                "metric": match["metric"],
                "op": match["op"],
                "value": value,
                "text": match["value"] + match["unit"],
                "critical": match["critical"] is not None,
            }
        )

    def holds(self, measured: float) -> bool:
        """False for NaN, whatever the operator."""
        if math.isnan(measured):
            return False
        return {
            "<=": measured <= self.value,
            ">=": measured >= self.value,
            "<": measured < self.value,
            ">": measured > self.value,
            "==": measured == self.value,
        }[self.op]

    def __str__(self) -> str:
        return f"{self.metric} {self.op} {self.text}"


def parse_bytes(text: str) -> int:
    """`16GB` -> 16e9, `512MiB` -> 536870912. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+\.?\d*)\s*([A-Za-z]*)\s*", text)
    units = {k: v for k, v in UNITS.items() if k.endswith("b") or k == ""}
    if match is None or match[2].lower() not in units:
        raise ValueError(f"{text!r} is not a size; write for example 16GB or 12GiB")
    return int(float(match[1]) * units[match[2].lower()])


class GateKind(StrEnum):
    """The last three come from a plan's goals; a `person` gate is decided by nobody else."""

    COMMAND = "command"
    METRIC = "metric"
    FILES = "files"
    ARTIFACT = "artifact"
    LINK = "link"
    PERSON = "person"


def _size(value: object) -> object:
    return parse_bytes(value) if isinstance(value, str) else value


Bytes = Annotated[PositiveInt, BeforeValidator(_size)]
"""A number of bytes; people may write 4GB or 512MiB."""


class ResourceLimits(Record):
    """What one process of a gate may use; the kernel enforces it. None = no limit."""

    memory_bytes: Bytes | None = Field(default=None, description="private memory; Linux only")
    cpu_seconds: PositiveInt | None = Field(default=None, description="time on a processor")
    file_bytes: Bytes | None = Field(default=None, description="size of one written file")


class GateSpec(Record):
    """One thing the framework checks: an acceptance criterion, an exit gate, a quality gate."""

    id: NonEmpty = Field(description="AC1, G2, X3; unique within a plan")
    name: NonEmpty
    kind: GateKind
    command: str = Field(default="", description="shell command; {run}, {adapter}, … are filled in")
    bound: Bound | None = None
    paths: tuple[str, ...] = Field(default=(), description="files promised at the commit")
    artifact: ArtifactCheck | None = None
    link: KeyLink | None = None
    preset: str = Field(default="", description="how the tool is read; empty = by its command")
    baseline: bool = Field(default=False, description="no worse than the target branch is enough")
    limits: ResourceLimits | None = None
    critical: bool = False
    timeout_seconds: PositiveInt = 600
    statement: str = Field(default="", description="the criterion in words")
    expect: Literal["success", "failure"] = Field(
        default="success", description="failure = the command must fail, as a test before its code"
    )
    expect_output: str = Field(
        default="", description="what its output should say; a difference is told, not judged"
    )
    verbatim: bool = Field(
        default=False, description="braces are the command's own: no variables are filled in"
    )


class Baseline(Record):
    """What the same gate found on the target branch, in the same kind of environment."""

    branch: NonEmpty
    commit: NonEmpty
    findings: float


class Evidence(Record):
    """The stored result of one gate that the framework itself ran."""

    id: NonEmpty
    gate: GateSpec
    verdict: Verdict
    story: NonEmpty
    task: NonEmpty
    attempt: int
    commit: str
    detail: str = Field(description="one line: the measured value, or why it is not passed")
    command: str = ""
    exit_code: int | None = None
    output_sha256: Sha256 | None = None
    output_path: str | None = None
    code_path: str | None = Field(
        default=None, description="where the project's code was imported from"
    )
    measured: float | None = None
    interval: tuple[float, float] | None = None
    findings: float | None = Field(default=None, description="counted in the tool's own output")
    baseline: Baseline | None = None
    output_tail: str = Field(default="", description="the end of the output")
    tools: dict[str, str] = Field(
        default_factory=dict, description="versions in the gates' environment"
    )
    environment: str | None = Field(
        default=None, description="the cached environment it ran in; None = the crew's own"
    )
    host: str
    started_at: Utc
    duration_seconds: float
    waiver: Waiver | None = None

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def acceptable(self) -> bool:
        return self.verdict in ACCEPTABLE


def verdict_of(evidence: tuple[Evidence, ...], gates: tuple[GateSpec, ...]) -> tuple[str, ...]:
    """What keeps the work from being accepted, one line a gate; empty = accepted.

    A gate without evidence counts as not run. An empty list of gates accepts nothing.
    """
    if not gates:
        return ("no gate is defined: nothing was checked",)
    by_gate: dict[str, list[Evidence]] = {}
    for item in evidence:
        by_gate.setdefault(item.gate.id, []).append(item)
    problems: list[str] = []
    for gate in gates:
        # Evidence of another check under the same id shows nothing about this one.
        seen = [item for item in by_gate.get(gate.id, ()) if item.gate == gate]
        if not seen:
            problems.append(f"{gate.id} {gate.name}: not run")
        problems += [
            f"{gate.id} {gate.name}: {found.verdict.value} ({found.detail})"
            for found in seen
            if not found.acceptable
        ]
    return tuple(problems)


Evidence.model_rebuild()
