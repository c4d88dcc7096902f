"""The numbers of config.toml that rules need: WIP limits, lease times, adaptation rounds."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt

from oodatcaa.domain.base import Record
from oodatcaa.domain.task import Role


class WipLimits(Record):
    """Tasks of one role that may be in work at once."""

    planner: PositiveInt = Field(default=1, description="stories being planned at once")
    builder: PositiveInt = Field(default=3, description="build subtasks in progress at once")
    tester: PositiveInt = Field(default=2, description="test subtasks being tested at once")
    refiner: PositiveInt = Field(default=1, description="stories being adapted at once")
    integrator: PositiveInt = Field(default=1, description="stories being integrated at once")

    def of(self, role: Role) -> int:
        return int(getattr(self, role.value))


class LeaseMinutes(Record):
    """Time to live per role; a lease that is not renewed for this long runs out."""

    planner: PositiveFloat = Field(default=30, description="minutes for a story that is planned")
    builder: PositiveFloat = Field(default=90, description="minutes for a build subtask")
    tester: PositiveFloat = Field(default=45, description="minutes for a test subtask")
    refiner: PositiveFloat = Field(default=45, description="minutes for a story that is adapted")
    integrator: PositiveFloat = Field(
        default=30, description="minutes for a story that is integrated"
    )

    def seconds(self, role: Role) -> int:
        return max(1, round(float(getattr(self, role.value)) * 60))


class Policy(Record):
    wip: WipLimits = WipLimits()
    lease_minutes: LeaseMinutes = LeaseMinutes()
    heartbeat_seconds: PositiveFloat = 15
    max_expiries: PositiveInt = 3
