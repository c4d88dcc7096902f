"""Records that agents return: asked for with a JSON Schema, refused with all errors at once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from oodatcaa.domain.agents import AgentDefinition, Turn
from oodatcaa.domain.base import Record
from oodatcaa.errors import OodatcaaError
from oodatcaa.roles.builder.agent import KINDS
from oodatcaa.roles.desk import Agents
from oodatcaa.roles.prompts import again_prompt

T = TypeVar("T")
MAX_PROBLEMS = 60


class AgentFailedError(OodatcaaError):
    """An agent did not return what it was asked for; `kind` is that of the failure."""

    def __init__(self, kind: str, message: str, *, circle: str = "", details: Any = ()) -> None:
        super().__init__(f"agent.{kind}", message, details=details)
        self.kind = kind
        self.circle = circle


def schema_of(kind: type[Record], owned: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The record's JSON Schema without the fields that the framework itself fills in."""
    schema = kind.model_json_schema()
    schema["properties"] = {
        name: value for name, value in schema["properties"].items() if name not in owned
    }
    schema["required"] = [name for name in schema.get("required", ()) if name not in owned]
    return schema


def schema_problems(kind: type[Record], data: Any) -> list[str]:
    """Everything in which `data` does not fit the record's JSON Schema, with its place."""
    import jsonschema

    validator = jsonschema.Draft202012Validator(kind.model_json_schema())
    found = sorted(validator.iter_errors(data), key=lambda error: list(map(str, error.path)))
    return [
        f"{'.'.join(map(str, error.absolute_path)) or kind.__name__}: {error.message[:300]}"
        for error in found
    ]


def json_in(text: str) -> Any:
    """The JSON object in an agent's answer: all of it, its last ```json block, or what stands
    between the first and the last brace. Raises ValueError, saying why, when there is none."""
    blocks = re.findall(r"```(?:json)?\s*\n(.*?)```", text, flags=re.DOTALL)
    candidates = [text, *reversed(blocks), text[text.find("{") : text.rfind("}") + 1]]
    why = "there is no JSON object in the answer"
    for candidate in candidates:
        try:
            found = json.loads(candidate)
        except (ValueError, RecursionError) as error:
            if "{" in candidate:
                why = f"the JSON can not be read: {error}"
            continue
        if isinstance(found, dict):
            return found
        why = "the answer is JSON, but not an object"
    raise ValueError(why)


def ask(
    agents: Agents,
    definition: AgentDefinition,
    prompt: str,
    check: Callable[[Any], tuple[T | None, list[str]]],
    *,
    cwd: Path,
) -> T:
    """What `check` makes of the agent's answer. Every problem goes back to the agent, in the same
    session where its runner can, at most `output_retries` times.

    Raises AgentFailedError (agent.invalid_output or how the call ended).
    """
    told, session, problems = prompt, "", [""]
    for _ in range(agents.output_retries + 1):
        turn = agents.call(definition, told, cwd=cwd, session=session)
        _must_have_ended_well(definition, turn)
        value, problems = _checked(turn.text, check)
        if value is not None and not problems:
            return value
        agents.note(
            f"{definition.name} returned an invalid record: {len(problems)} problems",
            tuple(problems[:MAX_PROBLEMS]),
        )
        session, again = turn.session, again_prompt(problems[:MAX_PROBLEMS])
        told = again if session else prompt + "\n" + again
    raise AgentFailedError(
        "invalid_output",
        f"{definition.name} returned an invalid record {agents.output_retries + 1} times; "
        f"the first of {len(problems)} problems: {problems[0]}",
        details=problems[:MAX_PROBLEMS],
    )


def _checked(
    text: str, check: Callable[[Any], tuple[T | None, list[str]]]
) -> tuple[T | None, list[str]]:
    try:
        data = json_in(text)
    except ValueError as error:
        return None, [str(error)]
    return check(data)


def _must_have_ended_well(definition: AgentDefinition, turn: Turn) -> None:
    """Refused permissions do not matter here: the record itself is what is looked at."""
    if not turn.ok and not (turn.ending.value == "denied" and turn.text):
        raise AgentFailedError(
            KINDS[turn.ending],
            f"{definition.name}: {turn.detail or turn.ending.value}",
            circle=turn.circle,
        )
