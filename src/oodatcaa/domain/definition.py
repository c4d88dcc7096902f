"""`agents/<name>.md` read into an AgentDefinition, every problem at once."""

from __future__ import annotations

import re
from typing import Any

import yaml
from pydantic import ValidationError

from oodatcaa.domain.agents import AgentDefinition
from oodatcaa.domain.objective import split_front_matter
from oodatcaa.errors import OodatcaaError

NO_MODEL = ("", "none", "inherit", "default")
"""Words that people write where the runner is to choose the model itself."""


def parse_definition(text: str, source: str) -> tuple[AgentDefinition | None, tuple[str, ...]]:
    """(definition, problems); the definition is None when there are problems.

    Follows the convention of `.claude/agents/*.md`: `tools` may be a list or words joined by
    commas, and a description may hold an unquoted colon.
    """
    try:
        head, body = split_front_matter(text)
        data = _mapping(head)
    except OodatcaaError as error:
        return None, (f"{source}: {error.message}",)
    except yaml.YAMLError as error:
        return None, (f"{source}: the front matter is not YAML: {' '.join(str(error).split())}",)
    values: dict[str, Any] = {**data, "prompt": body.strip(), "source": source}
    problems = [
        f"{source}: {name}: is the file's own" for name in ("prompt", "source") if name in data
    ]
    if isinstance(values.get("tools"), str):
        values["tools"] = [word.strip() for word in values["tools"].split(",") if word.strip()]
    for name in ("tools", "limits"):
        if name in values and values[name] is None:
            del values[name]
    model = values.get("model")
    if model is None or str(model).lower() in NO_MODEL:
        values["model"] = ""
    try:
        definition = AgentDefinition.model_validate(values)
    except ValidationError as error:
        problems += [f"{source}: {line}" for line in explain(error)]
        return None, tuple(problems)
    return (None if problems else definition), tuple(problems)


def explain(error: ValidationError) -> list[str]:
    """One line per problem, with the place."""
    lines = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"]) or "record"
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key"
        elif item["type"] == "missing":
            message = "is required"
        lines.append(f"{place}: {message}")
    return lines


def _mapping(head: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load(head)
    except yaml.YAMLError:
        # `description: Use this when: …` is common in such files and is no YAML.
        data = yaml.safe_load(_quoted(head))
    if not isinstance(data, dict):
        raise OodatcaaError("agent.bad_yaml", "the front matter is not a mapping")
    return {str(key): value for key, value in data.items()}


def _quoted(head: str) -> str:
    def quote(found: re.Match[str]) -> str:
        value = found.group(2).strip().replace("\\", "\\\\").replace('"', '\\"')
        return f'{found.group(1)}: "{value}"'

    return re.sub(r"^(description):[ \t]+([^\"'|>\s].*)$", quote, head, flags=re.MULTILINE)
