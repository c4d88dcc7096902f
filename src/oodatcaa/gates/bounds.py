"""How much a gate may use: what the project allows bounds what a plan asks for."""

from __future__ import annotations

from oodatcaa.domain.evidence import GateSpec, ResourceLimits
from oodatcaa.domain.gate_presets import PRESETS
from oodatcaa.kit.config import GatesConfig, QualityGate


def bounded(gate: GateSpec, config: GatesConfig) -> tuple[int, ResourceLimits]:
    """(seconds, limits) for one run: those of the project's own gates as they are, of every other
    gate the tighter ones of its own and the configuration's."""
    if any(_is(gate, own) for own in config.quality):
        return gate.timeout_seconds, gate.limits or config.limits
    seconds = min(gate.timeout_seconds, config.timeout_seconds)
    if gate.limits is None:
        return seconds, config.limits
    asked, allowed = gate.limits, config.limits
    return seconds, ResourceLimits(
        memory_bytes=_tighter(asked.memory_bytes, allowed.memory_bytes),
        cpu_seconds=_tighter(asked.cpu_seconds, allowed.cpu_seconds),
        file_bytes=_tighter(asked.file_bytes, allowed.file_bytes),
    )


def _tighter(asked: int | None, allowed: int | None) -> int | None:
    return min((value for value in (asked, allowed) if value is not None), default=None)


def _is(gate: GateSpec, own: QualityGate) -> bool:
    preset = PRESETS.get(own.preset)
    command = own.command or (preset.command if preset else "")
    seconds = own.timeout_seconds or (preset.timeout_seconds if preset else 600)
    mine = (gate.command, gate.preset, gate.limits, gate.timeout_seconds)
    return mine == (command, own.preset, own.limits, seconds)
