"""The random numbers of a training step: dropout that is the same whenever a block is computed.

MLX has a random state for each thread. Only that of the thread that trains is used, and saved in
checkpoints: a process in which another thread had one was seen to abort at its end, while MLX took
both apart. So a step takes its numbers there, and whatever draws in it, on any thread, draws from
those.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
import numpy as np

_stock_dropout = nn.Dropout.__call__


class Numbers(Protocol):
    """A source of random numbers."""

    def split(self) -> Numbers:
        """The next independent source."""

    def mask(self, keep: float, shape: tuple[int, ...]) -> mx.array:
        """True with probability `keep`; the same each time."""


class _Seeds:
    """numpy's, where layers evaluate as they are met: it makes a mask in a tenth of the time of
    MLX's CPU device."""

    def __init__(self, *path: int) -> None:
        self._path, self._count = path, 0

    def split(self) -> Numbers:
        self._count += 1
        return _Seeds(*self._path, self._count)

    def mask(self, keep: float, shape: tuple[int, ...]) -> mx.array:
        values = np.random.Generator(np.random.SFC64(self._path)).random(shape, dtype=np.float32)
        return mx.array(values < np.float32(keep))


class _Keys:
    """MLX's, in its graph: what numpy draws would be a constant of a compiled step."""

    def __init__(self, key: mx.array) -> None:
        self._key = key

    def split(self) -> Numbers:
        self._key, new = mx.random.split(self._key)
        return _Keys(new)

    def mask(self, keep: float, shape: tuple[int, ...]) -> mx.array:
        return mx.random.bernoulli(keep, shape, key=self._key)


class _Now(threading.local):
    """What this thread draws from: parts of a batch run side by side."""

    numbers: Numbers | None = None


_now = _Now()


def random_key() -> int:
    """This thread's random state of MLX, as the number that `mx.random.seed` restores it from."""
    state: Any = mx.random.state
    high, low = state[0].tolist()
    return int(high) << 32 | int(low)


def draw(count: int) -> list[int]:
    """Seeds below 2**31, from this thread's random state of MLX."""
    found: Any = mx.random.randint(0, 1 << 31, (count,), dtype=mx.uint32).tolist()
    return [int(seed) for seed in found]


def seeded(seed: int) -> AbstractContextManager[None]:
    """Inside, this thread draws the numbers of `seed`."""
    return _holding(_Seeds(seed))


def step(*, at_once: bool) -> AbstractContextManager[None]:
    """Inside, this thread draws the numbers of one step: those that `seeded()` holds already, or
    new ones from MLX's state. `at_once`: whether the step's layers evaluate as they are met."""
    if _now.numbers is not None:
        return nullcontext()
    if at_once:
        return seeded(draw(1)[0])
    return _holding(_Keys(mx.random.randint(0, 1 << 31, (2,), dtype=mx.uint32)))


def repeatable() -> Callable[[], AbstractContextManager[None]]:
    """For what is computed now, and may be again: the first time it draws the numbers that come
    next in this thread, later the same ones, on whatever thread."""
    numbers = _now.numbers
    if numbers is None:
        return nullcontext
    start, first = copy.copy(numbers), True

    def hold() -> AbstractContextManager[None]:
        nonlocal first
        if first:
            first = False
            return nullcontext()
        return _holding(copy.copy(start))

    return hold


@contextmanager
def _holding(numbers: Numbers) -> Iterator[None]:
    before, _now.numbers = _now.numbers, numbers
    try:
        yield
    finally:
        _now.numbers = before


class Drop:
    """Inverted dropout (Srivastava et al. 2014): 0, or 1 / `keep` of a value with probability
    `keep`. A mask that is made again on the way back need not be kept until then."""

    def __init__(self, keep: float, numbers: Numbers) -> None:
        self.keep, self._numbers = keep, numbers

    def mask(self, shape: tuple[int, ...]) -> mx.array:
        """What stays; boolean, because those of all layers are there at once on the way back."""
        return self._numbers.mask(self.keep, shape)

    def of(self, x: mx.array, mask: mx.array) -> mx.array:
        """`x` where `mask` keeps it, scaled."""
        return mx.where(mask, x * (1 / self.keep), 0.0)


def drop_of(layer: nn.Dropout) -> Drop | None:
    """What `layer` does this time, with the numbers that are held; None = nothing."""
    if not layer.training or layer._p_1 == 1 or _now.numbers is None:
        return None
    return Drop(layer._p_1, _now.numbers.split())


def draws(network: nn.Module) -> bool:
    """Whether it draws numbers while it is trained."""
    return any(isinstance(layer, nn.Dropout) and layer._p_1 < 1 for layer in network.modules())


def route() -> None:
    """Have every `nn.Dropout`, in this process, draw from the numbers that are held; from MLX's
    state where none are."""
    nn.Dropout.__call__ = _dropout


def _dropout(layer: nn.Dropout, x: mx.array) -> mx.array:
    drop = drop_of(layer)
    if drop is None:
        result: mx.array = _stock_dropout(layer, x)
        return result
    return drop.of(x, drop.mask(x.shape))
