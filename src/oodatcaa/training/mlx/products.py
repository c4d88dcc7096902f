"""float32 products on the CPU, evaluated at once, by the faster of two libraries.

MLX multiplies with the BLAS that was preloaded. On a Zen 4 MKL keeps to its AVX2 kernels, and the
OpenBLAS that numpy brings is faster: for the shapes of a training step on one thread by 5 to 12 %;
whole steps that took turns with MKL's took 6 % less time. It is asked for products that take one
thread: that is how `blas.preload` made it ready. Results have no history in a trace, where what is
given has none or numpy multiplies.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from oodatcaa.training.mlx import blas, vector


def by_numpy(x: mx.array, matrix: mx.array) -> bool:
    """Whether a product of these is numpy's, in the threads that a product takes now."""
    floats = x.dtype == mx.float32 and matrix.dtype == mx.float32
    return floats and blas.numpy_is_faster()


def untraced(x: mx.array) -> mx.array:
    """As a product wants it that is to leave the history of `x` behind."""
    return x if by_numpy(x, x) else vector.cut(x)


def transposed(x: mx.array, matrix: mx.array) -> mx.array:
    """`x @ matrix.T`: [..., inputs] and [outputs, inputs] give [..., outputs]."""
    if not by_numpy(x, matrix):
        y = x @ matrix.T
        mx.eval(y)
        return y
    rows, outputs = _rows(x), vector.view(matrix).T
    shape = (*x.shape[:-1], matrix.shape[0])

    def fill(place: vector.Floats) -> None:
        np.matmul(rows, outputs, out=place.reshape(len(rows), -1))

    return vector.made(shape, fill)


def stacked(x: mx.array, y: mx.array) -> mx.array:
    """`x @ y` of stacks of matrices, [..., rows, inputs] and [..., inputs, columns]."""
    if not by_numpy(x, y):
        found = vector.cut(x) @ vector.cut(y)
        mx.eval(found)
        return found
    return _stacked(vector.view(x), vector.view(y))


def stacked_transposed(x: mx.array, y: mx.array, scale: float) -> mx.array:
    """The same of `scale * x` and the matrices of `y` transposed."""
    if not by_numpy(x, y):
        found = (vector.cut(x) * scale) @ vector.cut(y).swapaxes(-1, -2)
        mx.eval(found)
        return found
    return _stacked(vector.view(x) * np.float32(scale), vector.view(y).swapaxes(-1, -2))


def _stacked(x: vector.Floats, y: vector.Floats) -> mx.array:
    shape = (*x.shape[:-1], y.shape[-1])
    return vector.made(shape, lambda place: np.matmul(x, y, out=place))


def numbers(x: mx.array, matrix: mx.array) -> vector.Floats:
    """`x @ matrix` of two matrices, for numpy, in memory of its own."""
    if not by_numpy(x, matrix):
        return vector.view(x @ matrix)
    found: vector.Floats = np.matmul(vector.view(x), vector.view(matrix))
    return found


def adapted(
    y: mx.array, x: mx.array, a: mx.array, b: mx.array, scale: float
) -> tuple[mx.array, mx.array]:
    """`y + low @ b` and `low`, which is `(x @ a) * scale`. The caller has just computed `y` and
    nobody else refers to it: it may be overwritten."""
    if not by_numpy(x, a):
        x, a, b = vector.cut_all((x, a, b))
        low = (x @ a) * scale
        y = mx.addmm(y, low, b)
        mx.eval(y, low)
        return y, low
    few = np.matmul(_rows(x), vector.view(a))
    few *= scale
    vector.view(y).reshape(len(few), -1)[...] += np.matmul(few, vector.view(b))
    return y, mx.array(few.reshape(*x.shape[:-1], -1))


def _rows(x: mx.array) -> vector.Floats:
    return vector.view(x).reshape(-1, x.shape[-1])
