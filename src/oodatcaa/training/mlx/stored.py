"""A linear layer's matrix that is not trained, ready to be multiplied with in float32.

Quantised ones are dequantised where they are used, and again for the way back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from oodatcaa.training.mlx import products, vector
from oodatcaa.training.mlx.dense import dequantise, dequantised

PIECE_BYTES, MOST_PIECES = 16 << 20, 2
"""Of a matrix that is dequantised for a product in the forward pass."""


@dataclass(frozen=True)
class Stored:
    """[outputs, inputs], outside of the module tree, whose arrays mlx-lm traces."""

    weight: mx.array
    scales: mx.array | None = None
    biases: mx.array | None = None
    how: dict[str, Any] = field(default_factory=dict)
    held: mx.array | None = None
    """The matrix as float32, where it is there as a whole."""

    @classmethod
    def of(cls, layer: nn.Module) -> Stored:
        """Of a QuantizedLinear, a QuantizedEmbedding, or a Linear."""
        if "scales" not in layer:
            return cls(layer["weight"], held=layer["weight"])
        how = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
        return cls(layer["weight"], layer["scales"], layer.get("biases"), how)

    def hold(self, *, by_columns: bool) -> Stored:
        """With a float32 copy: the same values, in 4 bytes for each. `by_columns`: it lies in
        memory column after column."""
        if self.held is not None:
            return self
        held = dequantised(*self._packed(slice(None)), **self.how, by_columns=by_columns)
        return replace(self, held=held)

    def dense(self, dtype: mx.Dtype) -> mx.array:
        """The whole matrix."""
        return self.rows(slice(None), dtype)

    def rows(self, wanted: slice, dtype: mx.Dtype) -> mx.array:
        """Some of it."""
        if self.held is not None:
            whole = wanted == slice(None)
            return (self.held if whole else self.held[wanted]).astype(dtype)
        weight, scales, biases = self._packed(wanted)
        return dequantise(weight, scales, biases, **self.how).astype(dtype)

    def _packed(self, wanted: slice) -> tuple[mx.array, mx.array, mx.array | None]:
        assert self.scales is not None
        if wanted == slice(None):
            return self.weight, self.scales, self.biases
        biases = None if self.biases is None else self.biases[wanted]
        return self.weight[wanted], self.scales[wanted], biases

    def pieces(self, x: mx.array) -> Iterator[tuple[slice, mx.array]]:
        """The matrix for a product with `x`, a large one in pieces: an output layer as a whole
        takes gigabytes, and so do the stages of making it. A held one is cut in the same way: the
        same products, the same bits."""
        count = self.weight.shape[0]
        size = max(1, PIECE_BYTES // (4 * x.shape[-1]))
        if count <= MOST_PIECES * size:
            yield slice(None), self.dense(x.dtype)
            return
        for start in range(0, count, size):
            wanted = slice(start, start + size)
            yield wanted, self.rows(wanted, x.dtype)

    def times(self, x: mx.array) -> mx.array:
        """`x @ W.T`, evaluated, without the history of `x`."""
        x = products.untraced(x)
        return _joined([products.transposed(x, rows) for _, rows in self.pieces(x)])

    def times_and_norms(
        self, x: mx.array, a: mx.array, b: mx.array, scale: float
    ) -> tuple[mx.array, mx.array]:
        """`x @ W.T`, and the length of each row of `W + scale * (a @ b).T`; evaluated."""
        found, norms = [], []
        for wanted, rows in self.pieces(x):
            found.append(products.transposed(x, rows))
            adapted = mx.addmm(rows, (scale * b[:, wanted]).T, a.T)
            norms.append(mx.sqrt(vector.sums(mx.square(adapted)))[:, 0])
            mx.eval(norms[-1])
        return _joined(found), _joined(norms)


def _joined(parts: list[mx.array]) -> mx.array:
    if len(parts) == 1:
        return parts[0]
    whole = mx.concatenate(parts, axis=-1)
    mx.eval(whole)
    return whole
