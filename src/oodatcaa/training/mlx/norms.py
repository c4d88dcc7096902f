"""`mx.fast.rms_norm`, where layers evaluate as they are met.

On the CPU MLX makes it of eight operations, each of which is handed to another thread and leaves a
buffer that a trace keeps. Here it is one, of which the trace keeps a number for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from oodatcaa.training.mlx import vector

_stock = mx.fast.rms_norm


def route() -> None:
    """Have it computed here, in this process. mlx-lm's models and MLX's layers all ask it by this
    name (Zhang and Sennrich 2019, "Root Mean Square Layer Normalization")."""
    fast: Any = mx.fast
    fast.rms_norm = _rms_norm


def _rms_norm(x: mx.array, weight: mx.array | None, eps: float, **options: Any) -> mx.array:
    if weight is None or not _here(x, weight) or options:
        result: mx.array = _stock(x, weight, eps, **options)
        return result
    if not vector.traced():
        return _normed(x, weight, eps)[0]

    @mx.custom_function
    def norm(x: mx.array, weight: mx.array) -> tuple[mx.array, mx.array]:
        return _normed(x, weight, eps)

    @norm.vjp
    def norm_vjp(
        primals: tuple[mx.array, mx.array],
        cotangents: Sequence[mx.array],
        outputs: Sequence[mx.array],
    ) -> tuple[mx.array, mx.array]:
        (x, weight), cotangent, each = primals, cotangents[0], outputs[1]
        scaled = cotangent * weight
        shift = vector.sums(scaled * x) * (each * each * each / x.shape[-1])
        d_weight = (cotangent * x * each).reshape(-1, x.shape[-1]).sum(axis=0)
        return scaled * each - x * shift, d_weight

    found: Any = norm(x, weight)
    whole: mx.array = found[0]
    return whole


def _here(x: mx.array, weight: mx.array) -> bool:
    """Whether that is computed here, and worth it. MLX takes more types, and refuses shapes."""
    floats = x.dtype == weight.dtype == mx.float32 and weight.shape == x.shape[-1:]
    return vector.active() and floats and x.size >= vector.FEW


def _normed(x: mx.array, weight: mx.array, eps: float) -> tuple[mx.array, mx.array]:
    """And what each row was multiplied by: [..., 1]."""
    width = x.shape[-1]
    rows, by = vector.view(x).reshape(-1, width), vector.view(weight)
    each = np.einsum("ij,ij->i", rows, rows)
    each /= width
    each += np.float32(eps)
    np.sqrt(each, out=each)
    np.reciprocal(each, out=each)

    def fill(place: vector.Floats) -> None:
        out = place.reshape(-1, width)
        for piece in vector.pieces(len(rows), width):
            np.multiply(rows[piece], each[piece, None], out=out[piece])
            out[piece] *= by

    return vector.made(x.shape, fill), mx.array(each.reshape(*x.shape[:-1], 1))
