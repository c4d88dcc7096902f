"""The frozen blocks below the first adapter, run once per batch and outside of the gradient.

Nothing under the first trained block has a gradient, but mlx-lm's trainer hands the whole model
to `value_and_grad`, and then MLX traces and keeps what those blocks compute. Here they run before
the step, or beside the one before (ahead.py); the step begins at the first trained block with their
output.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from oodatcaa.training.mlx import vector
from oodatcaa.training.mlx.batches import Batch
from oodatcaa.training.mlx.packed import packed


class _Reached(Exception):
    """The input of the first trained block is known: the rest of the model need not run."""


class Ended(Exception):
    """Nobody wants it any more."""


class _Now(threading.local):
    """What goes on in this thread: parts of a batch run side by side (parallel.py)."""

    capturing: bool = False
    captured: mx.array | None = None
    given: mx.array | None = None


class FrozenPrefix:
    """Splits a model with adapters on its last blocks. Make it with `frozen_prefix`."""

    def __init__(self, blocks: list[Any], first: int) -> None:
        self.first = first
        self._ended = False
        self._place: dict[int, int] = {}
        self._now = _Now()
        self.adopt(blocks)
        for kind in {type(block) for block in blocks}:
            self._wrap(kind)

    def adopt(self, blocks: list[Any]) -> None:
        """Split this copy of the model, too. The caller keeps the blocks alive."""
        self._place |= {id(block): place for place, block in enumerate(blocks)}

    def _wrap(self, kind: type[Any]) -> None:
        whole = kind.__call__

        def call(block: Any, x: mx.array, *args: Any, **options: Any) -> Any:
            place, now = self._place.get(id(block)), self._now
            if place is None or not (now.capturing or now.given is not None):
                return whole(block, x, *args, **options)
            if now.capturing and self._ended:
                raise Ended
            if now.capturing and place == self.first:
                now.captured = x
                raise _Reached
            if now.given is not None and place < self.first:
                return x
            if now.given is not None and place == self.first:
                x = now.given
            return whole(block, x, *args, **options)

        kind.__call__ = call

    def run(self, model: Any, tokens: mx.array) -> mx.array:
        """What the first trained block receives for `tokens`: [batch, length, hidden], evaluated.

        Must not be called while a gradient is traced.
        """
        self._now.capturing = True
        try:
            with vector.at_once(traced=False):
                model(tokens)
        except _Reached:
            pass
        finally:
            self._now.capturing = False
        found, self._now.captured = self._now.captured, None
        assert found is not None
        mx.eval(found)
        return found

    def filled(self, model: Any, batch: Batch) -> Batch:
        """`batch` with what the first trained block receives for it."""
        with packed(batch.owners):
            return batch._replace(hidden=self.run(model, batch.inputs))

    def end(self) -> None:
        """Whatever still runs, on any thread, raises Ended at the next block."""
        self._ended = True

    @contextmanager
    def given(self, hidden: mx.array | None) -> Iterator[None]:
        """Inside, the model starts at the first trained block with `hidden` (None: as always)."""
        self._now.given = hidden
        try:
            yield
        finally:
            self._now.given = None


def frozen_prefix(model: Any) -> FrozenPrefix | None:
    """The split of `model`, or None where it has no frozen blocks or can not be split.

    Nothing is assumed of an architecture: the split must reproduce the model's own output.
    """
    blocks = list(model.layers)
    trained = [n for n, block in enumerate(blocks) if tree_flatten(block.trainable_parameters())]
    if not trained or trained[0] == 0:
        return None
    was_training = model.training
    model.eval()
    tokens = mx.arange(8)[None]
    calls = {kind: kind.__call__ for kind in {type(block) for block in blocks}}
    found: FrozenPrefix | None = None
    try:
        with vector.at_once(traced=False):
            whole = model(tokens)
            prefix = FrozenPrefix(blocks, trained[0])
            with prefix.given(prefix.run(model, tokens)):
                split = model(tokens)
            found = prefix if _same(whole, split) else None
    except (AssertionError, AttributeError, TypeError, ValueError):
        found = None
    finally:
        model.train(was_training)
        if found is None:  # a model that can not be split keeps the blocks it came with
            for kind, call in calls.items():
                kind.__call__ = call
    return found


def _same(whole: mx.array, split: mx.array) -> bool:
    close = whole.shape == split.shape and mx.allclose(whole, split, rtol=1e-3, atol=1e-3).item()
    return bool(close)
