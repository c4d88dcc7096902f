"""OBJECTIVE.md: YAML front matter that the planner reads, prose for people."""

from __future__ import annotations

import hashlib
from typing import Any

import yaml
from pydantic import Field, PositiveInt, ValidationError, field_validator

from oodatcaa.domain.base import NonEmpty, Record
from oodatcaa.domain.evidence import Bound, parse_bytes
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.task import Approval, StoryId
from oodatcaa.errors import OodatcaaError

METRICS = {
    "test_loss_drop": "mean test loss of the base model minus that of the adapter (nats/token)",
    "test_loss": "mean test loss of the adapter (nats/token)",
    "peak_memory": "largest memory of the training process tree, in bytes",
    "tokens_per_second": "trained target tokens per second",
    "train_minutes": "wall time of the training run, in seconds when compared",
}
"""What an acceptance criterion of an objective may name."""

BACKENDS = ("mlx", "axolotl", "hf")


class Budget(Record):
    """What the crew may spend before it asks a person."""

    minutes: PositiveInt = Field(
        default=60,
        description="what the sprint should take; a longer training is named as a risk in its plan",
    )
    adapt_rounds: int = Field(
        default=3, ge=0, le=10, description="adaptations of one story before a person is asked"
    )
    sprint_rounds: int = Field(default=15, ge=0, description="rounds of all stories together")


class StoryOutline(Record):
    """A story of the objective's own, for example a feature of the project's code."""

    id: StoryId = Field(description="T001, T002, …; what `depends_on` names")
    title: NonEmpty = Field(description="one line")
    goal: NonEmpty = Field(description="what there is when it is done")
    depends_on: tuple[StoryId, ...] = Field(default=(), description="stories it waits for")
    estimate_minutes: PositiveInt = Field(default=60, description="its weight in the progress")
    approval: Approval | None = Field(
        default=None, description="where it waits for a person; left out = the objective's"
    )


class Objective(Record):
    """`memory_limit_bytes` is what `memory_limit: 16GB` says, in bytes (GB = 10^9)."""

    id: NonEmpty = Field(description="a short name of the objective, for example O-001")
    title: NonEmpty = Field(description="one line; reports and the sprint are named by it")
    model: NonEmpty = Field(
        default="demo", description="demo, a local mlx-lm folder, or a hub name"
    )
    data: NonEmpty = Field(
        default="demo",
        description="demo, or a folder with train.jsonl, valid.jsonl and test.jsonl",
    )
    qlora: QLoRA = Field(default=QLoRA(), description="the parameters of the fine-tuning")
    memory_limit_bytes: PositiveInt
    memory_limit_text: NonEmpty
    backends: tuple[str, ...] = Field(
        default=BACKENDS, min_length=1, description="training frameworks, the preferred one first"
    )
    acceptance: tuple[Bound, ...] = Field(
        min_length=1, description="what decides whether the objective is met, one bound a line"
    )
    budget: Budget = Field(default=Budget(), description="time and rounds the crew may spend")
    stories: tuple[StoryOutline, ...] = Field(
        default=(), description="the sprint's stories, instead of those of a fine-tuning"
    )
    approval: Approval | None = Field(
        default=None, description="plan, merge or none, for stories that do not say it themselves"
    )
    prompt: str = Field(default="", description="held-out prompt shown side by side at the end")
    eval_examples: PositiveInt | None = Field(
        default=None, description="examples of the test split that are evaluated; left out = all"
    )
    body: str = Field(default="", description="the prose below the front matter")
    sha256: str = ""

    @field_validator("backends")
    @classmethod
    def _known(cls, backends: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in backends if name not in BACKENDS]
        if unknown:
            raise ValueError(f"unknown backends {unknown}; known are {list(BACKENDS)}")
        if len(set(backends)) != len(backends):
            raise ValueError("a backend is named twice")
        return backends


def split_front_matter(text: str) -> tuple[str, str]:
    """(YAML, prose). Raises OodatcaaError when there is no closed front matter."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    hint = "start the file with '---', end the YAML with a line '---'; `oodatcaa init` writes one"
    if not text.startswith("---\n"):
        raise OodatcaaError("objective.no_front_matter", "no YAML front matter", hint=hint)
    head, mark, body = text[4:].partition("\n---")
    if not mark:
        raise OodatcaaError(
            "objective.no_front_matter", "the front matter is not closed", hint=hint
        )
    return head, body.partition("\n")[2].lstrip("\n")


def parse_objective(text: str, *, source: str = "OBJECTIVE.md") -> Objective:
    """The objective in `text`. Raises OodatcaaError listing every problem at once."""
    head, body = split_front_matter(text)
    hint = f"mend {source}; docs/reference/objective.md lists every key"
    try:
        data = yaml.safe_load(head)
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise OodatcaaError(
            "objective.bad_yaml", f"{source}: the front matter is not YAML: {detail}", hint=hint
        ) from error
    if not isinstance(data, dict):
        raise OodatcaaError(
            "objective.bad_yaml", f"{source}: the front matter is not a mapping", hint=hint
        )
    values, problems = _normalise(data)
    values |= {"body": body, "sha256": hashlib.sha256(text.encode()).hexdigest()}
    objective: Objective | None = None
    try:
        objective = Objective.model_validate(values)
    except ValidationError as error:
        problems += _explain(error, skip={line.split(":")[0] for line in problems})
    if problems or objective is None:
        raise OodatcaaError(
            "objective.invalid",
            f"{source} has {len(problems)} problem{'s' if len(problems) != 1 else ''}",
            hint=hint,
            details=problems,
        )
    return objective


def _normalise(data: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Turn what people write into what the record holds; collect what can not be."""
    values = dict(data)
    problems: list[str] = []
    limit = values.pop("memory_limit", "16GB")
    values["memory_limit_text"] = str(limit)
    try:
        values["memory_limit_bytes"] = parse_bytes(str(limit))
        if values["memory_limit_bytes"] <= 0:
            raise ValueError("must be more than nothing")
    except ValueError as error:
        problems.append(f"memory_limit: {error}")
        values["memory_limit_bytes"] = 1
    bounds: list[Bound] = []
    listed = values.get("acceptance", ["test_loss_drop >= 0.1", "peak_memory <= 16GB critical"])
    if not isinstance(listed, list):
        problems.append("acceptance: must be a list of lines such as 'test_loss_drop >= 0.1'")
        listed = []
    for number, line in enumerate(listed, 1):
        try:
            bound = Bound.parse(str(line))
        except ValueError as error:
            problems.append(f"acceptance: line {number}: {error}")
            continue
        if bound.metric not in METRICS:
            problems.append(
                f"acceptance: line {number}: unknown metric {bound.metric!r}; "
                f"known are {', '.join(METRICS)}"
            )
        bounds.append(bound)
    values["acceptance"] = bounds or [Bound.parse("test_loss_drop >= 0.1")]
    if not listed and not problems:
        problems.append("acceptance: at least one criterion is needed")
    values["stories"] = _stories(values.get("stories"), problems)
    return values, problems


def _stories(listed: Any, problems: list[str]) -> list[Any]:
    """Stories without an id are numbered T001, T002, … by their place."""
    if listed is None:
        return []
    if not isinstance(listed, list):
        problems.append("stories: must be a list of mappings with a title and a goal")
        return []
    found = [
        {"id": f"T{number:03d}", **item} if isinstance(item, dict) else item
        for number, item in enumerate(listed, 1)
    ]
    ids = [str(item.get("id")) for item in found if isinstance(item, dict)]
    for name in sorted({name for name in ids if ids.count(name) > 1}):
        problems.append(f"stories: the id {name} is used twice")
    for item in found:
        needs = item.get("depends_on", ()) if isinstance(item, dict) else ()
        for needed in needs if isinstance(needs, list | tuple) else ():
            if str(needed) not in ids:
                problems.append(f"stories: {item['id']} depends on {needed}, which does not exist")
    return found


def _explain(error: ValidationError, skip: set[str]) -> list[str]:
    lines: list[str] = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"])
        if place.split(".")[0] in skip:
            continue
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key"
        elif item["type"] == "missing":
            message = "is required"
        lines.append(f"{place or 'front matter'}: {message}")
    return lines
