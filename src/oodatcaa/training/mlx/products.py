"""float32 products of evaluated matrices on the CPU, by the faster of two libraries.

MLX multiplies with the BLAS that was preloaded. On a Zen 4 MKL keeps to its AVX2 kernels, and the
OpenBLAS that numpy brings is faster: for the shapes of a training step on one thread by 5 to 12 %;
whole steps that took turns with MKL's took 6 % less time. It is asked for products that take one
thread: that is how `blas.preload` made it ready.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from oodatcaa.training.mlx import blas

LARGE_BYTES = 4 << 20
"""From here on a product is written where it stays; a smaller one is copied there, which is faster
than to have MLX fill the place with zeros."""


def by_numpy(x: mx.array, matrix: mx.array) -> bool:
    """Whether a product of these is numpy's, in the threads that a product takes now."""
    floats = x.dtype == mx.float32 and matrix.dtype == mx.float32
    return floats and blas.threads() == 1 and blas.numpy_kernels() is not None


def transposed(x: mx.array, matrix: mx.array) -> mx.array:
    """`x @ matrix.T`, evaluated: [..., inputs] and [outputs, inputs] give [..., outputs]."""
    if not by_numpy(x, matrix):
        y = x @ matrix.T
        mx.eval(y)
        return y
    mx.eval(x, matrix)
    return _product(_rows(x), np.array(matrix, copy=False).T, (*x.shape[:-1], matrix.shape[0]))


def added(to: mx.array, x: mx.array, matrix: mx.array) -> mx.array:
    """`to + x @ matrix`, for two matrices: [rows, inputs] and [inputs, outputs]."""
    if not by_numpy(x, matrix):
        return mx.addmm(to, x, matrix)
    mx.eval(x, matrix)
    return to + _product(_rows(x), np.array(matrix, copy=False), (x.shape[0], matrix.shape[1]))


def adapted(
    y: mx.array, x: mx.array, a: mx.array, b: mx.array, scale: float
) -> tuple[mx.array, mx.array]:
    """`y + low @ b` and `low`, which is `(x @ a) * scale`, evaluated. The caller has just computed
    `y` and nobody else refers to it: it may be overwritten."""
    if not by_numpy(x, a):
        low = (x @ a) * scale
        y = mx.addmm(y, low, b)
        mx.eval(y, low)
        return y, low
    mx.eval(y, x, a, b)
    few = np.matmul(_rows(x), np.array(a, copy=False))
    few *= scale
    np.array(y, copy=False)[...] += np.matmul(few, np.array(b, copy=False)).reshape(y.shape)
    return y, mx.array(few.reshape(*x.shape[:-1], -1))


def _rows(x: mx.array) -> Any:
    return np.array(x, copy=False).reshape(-1, x.shape[-1])


def _product(rows: Any, matrix: Any, shape: tuple[int, ...]) -> mx.array:
    size = (rows.shape[0], matrix.shape[1])
    if 4 * size[0] * size[1] < LARGE_BYTES:
        return mx.array(np.matmul(rows, matrix).reshape(shape))
    place = mx.zeros(shape)
    mx.eval(place)
    # MLX's own buffer: nobody else refers to it yet.
    np.matmul(rows, matrix, out=np.array(place, copy=False).reshape(size))
    return place
