"""Random numbers of a training step, and dropout that keeps no mask.

MLX has a random state for each thread. Only that of the thread that trains is used, and saved in
checkpoints: a process in which another thread had one was seen to abort at its end, while MLX took
both apart. So a step draws a seed there, and its threads draw from numpy's generators.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import mlx.core as mx
import numpy as np


class _Now(threading.local):
    """What this thread draws from, inside of `seeded()`: parts of a batch run side by side."""

    source: np.random.Generator | None = None


_now = _Now()


def random_key() -> int:
    """This thread's random state of MLX, as the number that `mx.random.seed` restores it from."""
    state: Any = mx.random.state
    high, low = state[0].tolist()
    return int(high) << 32 | int(low)


def draw(count: int) -> list[int]:
    """Seeds below 2**31: from what `seeded()` holds in this thread, else from MLX's state."""
    if _now.source is not None:
        return [int(seed) for seed in _now.source.integers(1 << 31, size=count)]
    found: Any = mx.random.randint(0, 1 << 31, (count,), dtype=mx.uint32).tolist()
    return [int(seed) for seed in found]


def seeded(seed: int) -> AbstractContextManager[None]:
    """Inside, this thread draws the numbers of `seed`."""
    return _holding(np.random.Generator(np.random.SFC64(seed)))


def as_now() -> Callable[[], AbstractContextManager[None]]:
    """Brings back the numbers that come next in this thread, when and where a block is computed
    again."""
    source = copy.deepcopy(_now.source)
    return lambda: _holding(copy.deepcopy(source))


@contextmanager
def _holding(source: np.random.Generator | None) -> Iterator[None]:
    before, _now.source = _now.source, source
    try:
        yield
    finally:
        _now.source = before


class Drop:
    """Inverted dropout (Srivastava et al. 2014): 0, or 1 / `keep` of a value with probability
    `keep`. Drawn once, it is the same each time: a mask that is made again on the way back need
    not be kept until then. numpy makes one in a tenth of the time of MLX's CPU device."""

    def __init__(self, keep: float) -> None:
        self.keep = keep
        self._seed = draw(2)

    def mask(self, shape: tuple[int, ...]) -> mx.array:
        """What stays: boolean, because those of all layers are there at once on the way back."""
        values = np.random.Generator(np.random.SFC64(self._seed)).random(shape, dtype=np.float32)
        return mx.array(values < np.float32(self.keep))

    def of(self, x: mx.array, mask: mx.array) -> mx.array:
        """`x` where `mask` keeps it, scaled."""
        return mx.where(mask, x * (1 / self.keep), mx.array(0.0))
