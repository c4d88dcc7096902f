"""The presets that come along, read from `presets.toml`."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from oodatcaa.domain.agents import CommandSpec
from oodatcaa.domain.definition import explain

FILE = Path(__file__).with_name("presets.toml")


@cache
def presets() -> dict[str, CommandSpec]:
    """Every preset by name."""
    return {name: CommandSpec.model_validate(value) for name, value in _raw().items()}


@cache
def _raw() -> dict[str, dict[str, Any]]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def command_spec(preset: str, changes: dict[str, Any]) -> tuple[CommandSpec | None, list[str]]:
    """(spec, problems) of a preset (empty = none) with `changes` over it; tables are merged."""
    raw = _raw()
    if preset and preset not in raw:
        return None, [f"preset: unknown {preset!r}; known are {', '.join(sorted(raw))}"]
    try:
        return CommandSpec.model_validate(_merged(raw.get(preset, {}), changes)), []
    except ValidationError as error:
        return None, explain(error)


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            result[key] = _merged(old, value)
        else:
            result[key] = value
    return result
