"""Rows of several examples through a model of mlx-lm, none of which sees another.

mlx-lm's models ask `create_attention_mask`, which they import by name, what may look where: that
name is bound anew in the modules of a model's own source, in this process only. Rotary attention
sees distances alone, so positions need not begin again inside a row. Nothing of that is assumed of
an architecture: `must_pack` tries it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models import base

from oodatcaa.training.mlx import block_attention, vector
from oodatcaa.training.mlx.attention import additive
from oodatcaa.training.mlx.cpu import fast_cpu
from oodatcaa.training.packing import Blocks, Row, arrange_rows, blocks_in, not_packable, too_far

Body = Callable[[mx.array], mx.array]

_STOCK = base.create_attention_mask


class _Mask:
    """Backwards, and in one's own example: [rows, 1, length, length], true where one may look."""

    def __init__(self, owners: mx.array) -> None:
        self.length = owners.shape[1]
        own = owners[:, None, :, None] == owners[:, None, None, :]
        self._whole = own & base.create_causal_mask(self.length)
        self._owners = owners
        self._made: dict[tuple[int | None, bool], mx.array] = {}
        self.known: block_attention.Masks = []

    @cached_property
    def _blocks(self) -> Blocks | None:
        return blocks_in(np.array(self._owners))

    def is_one(self, array: mx.array) -> bool:
        return any(array is made for made in self._made.values())

    def within(self, window: int | None, *, added: bool) -> mx.array:
        """`added`: as the CPU's layers add it to scores, so that not each of them converts it.
        Where they compute blocks, it is evaluated only if a layer does want it after all."""
        if window is not None and window >= self.length:
            window = None
        if (window, added) not in self._made:
            seen = self._whole
            if window is not None:
                seen = seen & base.create_causal_mask(self.length, window_size=window)
            if added:
                scores = additive(seen, self.length, self.length)
                assert scores is not None
                seen = scores
                if self._blocks is not None:
                    block_attention.stands_for(seen, self._blocks, window)
                else:
                    mx.eval(seen)
            self._made[window, added] = seen
        return self._made[window, added]


class _Now(threading.local):
    """What holds in this thread: parts of a batch run side by side (parallel.py)."""

    given: _Mask | None = None


_now = _Now()


def _mask(
    h: mx.array, cache: Any = None, window_size: int | None = None, return_array: bool = False
) -> Any:
    own = _now.given
    if own is None or cache is not None or h.shape[1] != own.length:
        return _STOCK(h, cache, window_size, return_array)
    return own.within(window_size or None, added=vector.active() and h.dtype == mx.float32)


@contextmanager
def _holding(given: _Mask | None) -> Iterator[None]:
    before, _now.given = _now.given, given
    try:
        with block_attention.known_masks(None if given is None else given.known):
            yield
    finally:
        _now.given = before


def packed(owners: mx.array | None) -> AbstractContextManager[None]:
    """Inside, this thread's attention stays in the examples that `owners` [rows, length] tells
    apart (None: as always). For a model that was made ready by `route`."""
    return _holding(None if owners is None else _Mask(owners))


def as_now() -> Callable[[], AbstractContextManager[None]]:
    """Brings back what `packed()` holds in this thread now, when and where a block is computed
    again."""
    given = _now.given
    return lambda: _holding(given)


def is_mask(array: mx.array) -> bool:
    """Whether `array` is a mask of the rows that are packed in this thread now."""
    return _now.given is not None and _now.given.is_one(array)


def route(network: Any) -> None:
    """Have the modules of the model's own source ask `_mask` instead of mlx-lm's."""
    for name in {type(module).__module__ for module in network.modules()}:
        home: Any = sys.modules[name]
        if getattr(home, "create_attention_mask", None) is _STOCK:
            home.create_attention_mask = _mask


def must_pack(network: Any, body: Body, rows: Sequence[Row], max_seq_length: int) -> None:
    """Make `network` ready for packed rows, or raise OodatcaaError `train.bad_params` when an
    example of `rows` is not, to `body(tokens)`, what it is alone."""
    route(network)
    if counts_length(network, max_seq_length):
        raise not_packable("its rotary embedding depends on the length of a row")
    was_training = network.training
    network.eval()
    try:
        with vector.at_once(traced=False) if fast_cpu() else nullcontext():
            distance, half = _farthest(body, rows, max_seq_length)
    finally:
        network.train(was_training)
    if too_far(distance, half=half):
        raise not_packable(f"an example's output differs by {distance:.1%} from what it is alone")


def counts_length(network: Any, length: int) -> bool:
    """Whether a token is rotated otherwise in a longer row ("dynamic" scaling): in half precision
    the model's output would not tell that from rounding."""
    for module in network.modules():
        width = getattr(module, "dims", getattr(module, "dim", None))
        if "rope" not in type(module).__name__.lower() or not isinstance(width, int):
            continue
        x = mx.random.normal((1, 1, length, width), key=mx.random.key(0))
        some = max(1, length // 2)
        if not mx.allclose(module(x)[:, :, :some], module(x[:, :, :some]), atol=1e-4).item():
            return True
    return False


def _farthest(body: Body, rows: Sequence[Row], max_seq_length: int) -> tuple[float, bool]:
    """By how much a position's output differs at most, relative to its size, and whether the model
    computes in half precision."""
    arrays, owners = arrange_rows(rows, max_seq_length)
    with packed(mx.array(owners)):
        together = body(mx.array(arrays.inputs))
        mx.eval(together)
    worst = 0.0
    for number, row in enumerate(rows):
        for owner in range(len(row)):
            places = np.flatnonzero(owners[number] == owner)
            first, end = int(places[0]), int(places[-1]) + 1
            alone = body(mx.array(arrays.inputs[number : number + 1, first:end]))
            own, other = (a.astype(mx.float32) for a in (alone[0], together[number, first:end]))
            size = mx.maximum(mx.linalg.norm(own, axis=-1), 1e-20)
            far = (mx.linalg.norm(own - other, axis=-1) / size).max()
            worst = float(np.maximum(worst, far.item()))  # a NaN stays one
    return worst, together.dtype != mx.float32
