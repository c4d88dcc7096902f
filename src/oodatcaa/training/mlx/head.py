"""The output layer and its cross entropy, without ever holding the logits of a whole batch.

The gradient with respect to the hidden rows is computed in the forward pass, while logits are
there; the backward pass only scales it. In MLX's graph the logits are made in chunks of rows, each
tied to the one before, so that a scheduler can not run them side by side. Inside of
`vector.at_once()` they are made in tiles of columns that stay in the processor's cache, with a
running maximum and sum for each row (Milakov and Gimelshein 2018, "Online normalizer calculation
for softmax"). Either way the extra memory is that of one part. Same loss and gradients as
`cross_entropy(logits)` within float tolerance. For a frozen output layer only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from oodatcaa.training.formulas import (
    CHUNK_BYTES,
    HELD_HEAD_BYTES,
    LEAST_ROWS,
    MOST_TILE_ROWS,
    TILE_BYTES,
    tile_columns,
)
from oodatcaa.training.mlx import products, vector
from oodatcaa.training.mlx.dense import dequantise, dequantised

LEAST = -3.4028235e38
"""The lowest float32."""


def _apart(tensor: Any) -> Any:
    """Another array in the same memory. What mlx-lm compiles has the model's own arrays as inputs,
    and MLX refuses to meet one of them inside as anything else."""
    if tensor is None:
        return None
    other = mx.stop_gradient(tensor)
    mx.eval(other)
    return other


def total_of_logits(
    logits: mx.array, rows: mx.array, targets: mx.array, weights: mx.array
) -> mx.array:
    """Weighted sum of the cross entropies of some rows of float32 logits [..., vocabulary] that are
    there as a whole, in nats. For a step whose layers evaluate as they are met: its gradient is
    made now, some rows at a time, and nothing else is kept for the way back. Of rows that are named
    twice one may have a weight."""
    wanted, labels, shares = np.array(rows), np.array(targets), np.array(weights, np.float32)
    real = np.flatnonzero(shares)

    @mx.custom_function
    def total(logits: mx.array) -> tuple[mx.array, mx.array]:
        made = mx.zeros(logits.shape)
        mx.eval(logits, made)
        whole = np.array(logits, copy=False).reshape(-1, logits.shape[-1])
        gradient, found = np.array(made, copy=False).reshape(whole.shape), 0.0
        size = max(1, TILE_BYTES // (4 * whole.shape[-1]))
        for start in range(0, len(real), size):
            some = real[start : start + size]
            x, at = whole[wanted[some]], (np.arange(len(some)), labels[some])
            x -= x.max(axis=-1, keepdims=True)
            right = x[at]
            np.exp(x, out=x)
            sums = x.sum(axis=-1)
            found += float(shares[some] @ (np.log(sums) - right))
            x *= (shares[some] / sums)[:, None]
            x[at] -= shares[some]
            gradient[wanted[some]] = x
        return mx.array(found), made

    @total.vjp
    def total_vjp(_: Any, cotangents: Sequence[mx.array], outputs: Sequence[mx.array]) -> mx.array:
        return cotangents[0] * outputs[1]

    result: Any = total(logits)
    value: mx.array = result[0]
    return value


class FrozenHead:
    """`hidden -> logits` of a frozen linear or embedding layer, outside of MLX's module tree.

    mlx-lm traces every array of the module tree; these references are not traced. `dense`: the
    CPU's way, multiply with a float32 matrix.
    """

    def __init__(self, layer: Any, *, dense: bool) -> None:
        self.dense = dense
        self.quantised = isinstance(layer, (nn.QuantizedLinear, nn.QuantizedEmbedding))
        self._weight: mx.array = _apart(layer["weight"])
        self._scales, self._biases = _apart(layer.get("scales")), _apart(layer.get("biases"))
        self._bias = _apart(layer.get("bias"))
        if self.quantised:
            self._how: dict[str, Any] = {
                "group_size": layer.group_size,
                "bits": layer.bits,
                "mode": layer.mode,
            }
        self.vocabulary = int(self._weight.shape[0])
        self._dense: mx.array | None = None
        if dense and self.quantised:
            width = self._weight.shape[1] * 32 // layer.bits
            if 4 * self.vocabulary * width <= HELD_HEAD_BYTES:
                parts = self._weight, self._scales, self._biases
                self._dense = dequantised(*parts, **self._how)

    def _dequantised(self, rows: slice | mx.array | None = None) -> mx.array:
        def some(part: Any) -> Any:
            return part if part is None or rows is None else part[rows]

        parts = some(self._weight), some(self._scales), some(self._biases)
        if not self.dense:
            plain: mx.array = mx.dequantize(*parts, **self._how)
            return plain
        return dequantise(*parts, **self._how).astype(mx.float32)

    def matrix(self) -> mx.array | None:
        """What is multiplied with densely; None = the quantised product."""
        if not self.quantised:
            return self._weight
        if not self.dense:
            return None
        if self._dense is not None:
            return self._dense
        return self._dequantised()

    def rows(self, wanted: slice | mx.array) -> mx.array:
        """Of the matrix, and nothing but them: [rows, width]."""
        if self.quantised and self._dense is None:
            return self._dequantised(wanted)
        whole = self._dense if self.quantised else self._weight
        assert whole is not None
        return whole[wanted]

    def _tiled(self, hidden: mx.array) -> bool:
        """Whether the loss is computed in tiles: evaluations open `at_once()` on every device, but
        the vector library works on the CPU's float32 alone."""
        return vector.active() and self.dense and hidden.dtype == mx.float32

    def losses(self, hidden: mx.array, targets: mx.array) -> mx.array:
        """Negative log likelihood in nats of each target, float32; for use without gradient."""
        run = self._run_in_tiles if self._tiled(hidden) else self._run
        return run(hidden, targets, None)[0]

    def total(self, hidden: mx.array, targets: mx.array, weights: mx.array) -> mx.array:
        """The weighted sum of the targets' losses; differentiable in `hidden` [rows, width]."""

        @mx.custom_function
        def summed(h: mx.array) -> tuple[mx.array, mx.array]:
            run = self._run
            if vector.active():
                h = vector.cut(h)
            if self._tiled(h):
                run = self._run_in_tiles
            losses, gradient = run(h, targets, weights)
            assert gradient is not None
            value = (losses * weights).sum()
            if vector.active():
                mx.eval(value, gradient)
            return value, gradient

        @summed.vjp
        def summed_vjp(
            _: mx.array, cotangents: tuple[mx.array, mx.array], outputs: tuple[mx.array, mx.array]
        ) -> mx.array:
            gradient = outputs[1]
            return (cotangents[0] * gradient).astype(gradient.dtype)

        found: Any = summed(hidden)
        value: mx.array = found[0]
        return value

    def _run(
        self, hidden: mx.array, targets: mx.array, weights: mx.array | None
    ) -> tuple[mx.array, mx.array | None]:
        matrix = self.matrix()
        size = max(LEAST_ROWS, CHUNK_BYTES // (4 * self.vocabulary))
        losses: list[mx.array] = []
        gradients: list[mx.array] = []
        for start in range(0, hidden.shape[0], size):
            part = slice(start, start + size)
            rows = hidden[part]
            if losses:
                # On both: whichever is left for later keeps the logits of its chunk until then.
                rows = mx.depends([rows], [losses[-1], *gradients[-1:]])[0]
            weight = None if weights is None else weights[part]
            loss, gradient = self._chunk(matrix, rows, targets[part], weight)
            losses.append(loss)
            if gradient is not None:
                gradients.append(gradient)
        together = mx.concatenate(gradients) if gradients else None
        return mx.concatenate(losses), together

    def _run_in_tiles(
        self, hidden: mx.array, targets: mx.array, weights: mx.array | None
    ) -> tuple[mx.array, mx.array | None]:
        """As `_run`, for float32; every tile is evaluated before the next one begins."""
        losses: list[mx.array] = []
        gradients: list[mx.array] = []
        for start in range(0, hidden.shape[0], MOST_TILE_ROWS):
            part = slice(start, start + MOST_TILE_ROWS)
            weight = None if weights is None else weights[part]
            loss, gradient = self._in_tiles(hidden[part], targets[part], weight)
            mx.eval(loss, gradient)
            losses.append(loss)
            if gradient is not None:
                gradients.append(gradient)
        together = mx.concatenate(gradients) if gradients else None
        return mx.concatenate(losses), together

    # A model that diverges has infinite logits and a loss of NaN, which the step's check tells.
    @np.errstate(all="ignore")
    def _in_tiles(
        self, hidden: mx.array, targets: mx.array, weights: mx.array | None
    ) -> tuple[mx.array, mx.array | None]:
        count = hidden.shape[0]
        size = tile_columns(count)
        # Finite, so that a tile of nothing but -inf leaves no NaN.
        top, total, own = (np.full((count, 1), x, np.float32) for x in (LEAST, 0, 0))
        spread = np.zeros((0, 0) if weights is None else hidden.shape, np.float32)
        places = np.array(targets)
        for start in range(0, self.vocabulary, size):
            matrix = self.rows(slice(start, start + size))
            logits = products.transposed(hidden, matrix)
            # MLX's own buffer, which nobody else refers to: what follows overwrites it.
            view = np.array(logits, copy=False)
            if self._bias is not None:
                view += np.array(self._bias[start : start + size], copy=False)
            highest = np.maximum(top, view.max(axis=-1, keepdims=True))
            # The target's logit as it is in the sum, to the last bit: they cancel near a loss of 0.
            here = np.flatnonzero((places >= start) & (places < start + view.shape[1]))
            own[here, 0] = view[here, places[here] - start]
            # What was added up so far was relative to the maximum of the tiles so far.
            kept = np.exp(top - highest)
            view -= highest
            e = vector.exp_of(logits)
            total = total * kept + np.einsum("ij->i", np.array(e, copy=False))[:, None]
            if weights is not None:
                spread *= kept
                spread += products.numbers(e, matrix)
            top = highest
        loss = mx.array(np.log(total) + (top - own)).squeeze(-1)
        if weights is None:
            return loss, None
        spread /= total
        return loss, weights[:, None] * (mx.array(spread) - self.rows(targets))

    def _chunk(
        self, matrix: mx.array | None, rows: mx.array, targets: mx.array, weights: mx.array | None
    ) -> tuple[mx.array, mx.array | None]:
        logits = self._product(matrix, rows).astype(mx.float32)
        if self._bias is not None:
            logits = logits + self._bias
        chosen = mx.take_along_axis(logits, targets[:, None], axis=-1).squeeze(-1)
        top = logits.max(axis=-1, keepdims=True)
        e = mx.exp(logits - top)
        total = e.sum(axis=-1, keepdims=True)
        loss = (mx.log(total) + top).squeeze(-1) - chosen
        if weights is None:
            return loss, None
        # d loss / d logits = softmax - one_hot; the one_hot part is a row of the layer itself.
        spread = (e * (weights[:, None] / total)).astype(rows.dtype)
        gradient = self._back(matrix, spread) - weights[:, None] * self.rows(targets)
        gradient = gradient.astype(rows.dtype)
        # Whoever asks for the loss first must not leave the chunk's logits waiting for the rest.
        tied: mx.array = mx.depends([loss], [gradient])[0]
        return tied, gradient

    def _product(self, matrix: mx.array | None, rows: mx.array) -> mx.array:
        if matrix is not None:
            return rows @ matrix.T
        return self._quantised(rows, transpose=True)

    def _back(self, matrix: mx.array | None, gradient: mx.array) -> mx.array:
        if matrix is not None:
            return gradient @ matrix
        return self._quantised(gradient, transpose=False)

    def _quantised(self, x: mx.array, *, transpose: bool) -> mx.array:
        product: mx.array = mx.quantized_matmul(
            x, self._weight, self._scales, self._biases, transpose=transpose, **self._how
        )
        return product


def frozen_head(layer: Any, *, dense: bool) -> FrozenHead | None:
    """None for a layer that is trained, or of a kind with a product of its own."""
    plain = (nn.Linear, nn.Embedding, nn.QuantizedLinear, nn.QuantizedEmbedding)
    known = type(layer) in plain or getattr(layer, "multiplies_densely", False)
    if not known or tree_flatten(layer.trainable_parameters()):
        return None
    return FrozenHead(layer, dense=dense)
