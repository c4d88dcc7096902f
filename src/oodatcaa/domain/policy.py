"""The numbers of config.toml that rules need: WIP limits, lease times, adaptation rounds."""

from __future__ import annotations

from pydantic import PositiveFloat, PositiveInt

from oodatcaa.domain.base import Record
from oodatcaa.domain.task import Role


class WipLimits(Record):
    planner: PositiveInt = 1
    builder: PositiveInt = 3
    tester: PositiveInt = 2
    refiner: PositiveInt = 1
    integrator: PositiveInt = 1

    def of(self, role: Role) -> int:
        return int(getattr(self, role.value))


class LeaseMinutes(Record):
    """Time to live per role; a lease that is not renewed for this long runs out."""

    planner: PositiveFloat = 30
    builder: PositiveFloat = 90
    tester: PositiveFloat = 45
    refiner: PositiveFloat = 45
    integrator: PositiveFloat = 30

    def seconds(self, role: Role) -> int:
        return max(1, round(float(getattr(self, role.value)) * 60))


class Policy(Record):
    wip: WipLimits = WipLimits()
    lease_minutes: LeaseMinutes = LeaseMinutes()
    heartbeat_seconds: PositiveFloat = 15
    max_expiries: PositiveInt = 3
