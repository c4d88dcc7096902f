"""The wall of an MLX child: MLX's own counters beside the process's.

They leave out the allocator's cache, and MLX's memory limit never raises; so its cache counts too,
and the wall is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx

from oodatcaa.training import wall
from oodatcaa.training.wall import Guard


class MlxCounters:
    """training.wall.Counters"""

    title = "MLX"

    def held(self) -> int:
        return int(mx.get_active_memory() + mx.get_cache_memory())

    def active(self) -> int:
        return int(mx.get_active_memory())

    def peak(self) -> int:
        return int(mx.get_peak_memory())

    def reset(self) -> None:
        mx.reset_peak_memory()


COUNTERS = MlxCounters()


@contextmanager
def walled(folder: Path, limit: int) -> Iterator[Guard]:
    """The whole wall inside a child, for as long as the block runs; mlx is imported by now."""
    with wall.walled(folder, gate_limit(limit), COUNTERS) as guard:
        yield guard


def gate_limit(limit: int) -> int:
    """The smaller of `limit` and what Metal recommends as working set; `limit` elsewhere."""
    if not mx.metal.is_available():
        return limit
    recommended = int(mx.device_info().get("max_recommended_working_set_size", 0))
    return min(limit, recommended) if recommended > 0 else limit
