"""The rows of a batch on several threads of MLX's CPU device.

MLX's CPU build runs every operation on one thread; only the BLAS takes more for a product. So the
rows of a batch are dealt to the cores: each part goes through the model on a thread (and so on an
MLX stream) of its own, with a product's threads divided among them, and what the parts found is
added up in a fixed order. The sums are those of the whole batch within float tolerance, and the
same to the last bit each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from oodatcaa.training.mlx import vector
from oodatcaa.training.mlx.ahead import Ahead
from oodatcaa.training.mlx.batches import Batch, divide
from oodatcaa.training.mlx.prefix import FrozenPrefix
from oodatcaa.training.mlx.randomness import draw, seeded
from oodatcaa.training.mlx.team import Team

Loss = Callable[..., tuple[mx.array, mx.array]]


def divided_gradient(
    team: Team,
    loss: Loss,
    prefix: FrozenPrefix | None,
    *,
    ahead: Ahead | None = None,
    random: bool = False,
) -> Loss:
    """mlx-lm's `loss` seam for the whole batch, from `loss` on its parts.

    The parts' gradients are computed in the forward pass; the backward pass scales their sum.
    `ahead` may have begun with them, and begins with those of the next batch.
    `random`: each part has numbers of its own to draw (dropout), the same whenever the random state
    of the calling thread is.
    """

    def divided(model: Any, *batch: mx.array | None) -> tuple[mx.array, mx.array]:
        whole = _batch(None if part is None else vector.cut(part) for part in batch)
        share, count = whole.share, vector.cut(whole.weights.sum())
        parts = divide(whole._replace(share=None), team.size)
        seeds = draw(len(parts)) if random else [None] * len(parts)
        begun = ahead.take(parts) if ahead else [None] * len(parts)
        begin = ahead.begin if ahead and len(parts) == team.size else None
        names, arrays = zip(*tree_flatten(model.trainable_parameters()), strict=True)

        @mx.custom_function
        def mean(*arrays: mx.array) -> tuple[mx.array, ...]:
            values = tree_unflatten(list(zip(names, vector.cut_all(arrays), strict=True)))
            given = list(zip(parts, begun, seeds, strict=True))
            work = _Part(loss, prefix, values, count)
            return _added(team.each(work, given, values, meanwhile=begin))

        @mean.vjp
        def mean_vjp(
            _: tuple[mx.array, ...], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
        ) -> tuple[mx.array, ...]:
            scale = cotangents[0] if share is None else cotangents[0] * share
            return tuple(scale * gradient for gradient in outputs[1:])

        found: Any = mean(*arrays)
        return found[0], count

    return divided


def _batch(parts: Iterable[mx.array | None]) -> Batch:
    given: Any = Batch(*parts)  # type: ignore[arg-type]
    found: Batch = given
    return found


class _Part:
    """What one part adds to the mean over the whole batch's `count` targets, and its gradient."""

    def __init__(self, loss: Loss, prefix: FrozenPrefix | None, values: Any, count: mx.array):
        self.loss, self.prefix, self.values, self.count = loss, prefix, values, count

    def __call__(
        self, network: Any, given: tuple[Batch, Future[Batch] | None, int | None]
    ) -> list[mx.array]:
        part, begun, seed = given
        with nullcontext() if seed is None else seeded(seed):
            if begun is not None:
                part = part._replace(hidden=begun.result().hidden)
            elif self.prefix is not None:
                part = self.prefix.filled(network, part)
            return self._found(network, part)

    def _found(self, network: Any, part: Batch) -> list[mx.array]:
        def mean(values: Any) -> mx.array:
            network.update(values)
            value, own = self.loss(network, *part)
            return value * (own / self.count)

        # A dictionary of its own: MLX writes the traced arrays into the one that it is given.
        own_values = tree_map(lambda value: value, self.values)
        value, gradient = mx.value_and_grad(mean)(own_values)
        found = [value, *(array for _, array in tree_flatten(gradient))]
        mx.eval(found)
        return found


def divided_loss(team: Team, loss: Loss) -> Loss:
    """`loss` without a gradient (a validation's), from its parts."""

    def divided(model: Any, *batch: mx.array | None) -> tuple[mx.array, mx.array]:
        def part(network: Any, part: Batch) -> list[mx.array]:
            with vector.at_once(traced=False):
                mean, count = loss(network, *part)
            found = [mean * count, count]
            mx.eval(found)
            return found

        parts = divide(_batch(batch), team.size)
        total, count = _added(team.each(part, parts, model.trainable_parameters()))
        return total / count, count

    return divided


def _added(found: Sequence[Sequence[mx.array]]) -> tuple[mx.array, ...]:
    first, *others = found
    sums = list(first)
    for other in others:
        sums = [a + b for a, b in zip(sums, other, strict=True)]
    mx.eval(sums)
    return tuple(sums)
