"""`nn.gelu` and `nn.gelu_approx`, where layers evaluate as they are met.

On the CPU MLX computes `erf` and `tanh` one element at a time (25 and 18 ns each), and each of the
half a dozen operations around them leaves a buffer that a trace keeps. Here they are one, of which
the trace keeps what came in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.nn.layers import activations

from oodatcaa.training.mlx import vector

Slope = vector.Floats | None
Piece = Callable[[vector.Floats, vector.Floats, Slope], None]
"""Writes an activation of its second argument into the first; and its slope into the third."""

_STOCK = {"gelu": nn.gelu, "gelu_approx": nn.gelu_approx}

ERF_P = 0.3275911
ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
"""Abramowitz and Stegun 1964, 7.1.26: erf within 1.5e-7, which is a float32's last bit at 1."""
TANH_SCALE, CUBE = math.sqrt(2 / math.pi), 0.044715
"""Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", section 2."""


def route() -> None:
    """Have them computed here, in this process. Most of mlx-lm's models ask for them by these
    names of `mlx.nn`, the layer `nn.GELU` by those of its own module. Who keeps the functions
    themselves (nemotron-nas) goes on with MLX's."""
    for home in (nn, activations):
        place: Any = home
        place.gelu, place.gelu_approx = _gelu, _gelu_approx


def _gelu(x: mx.array) -> mx.array:
    return _activated(x, "gelu", _exact)


def _gelu_approx(x: mx.array) -> mx.array:
    return _activated(x, "gelu_approx", _by_tanh)


def _activated(x: mx.array, name: str, piece: Piece) -> mx.array:
    if not vector.active() or x.dtype != mx.float32 or x.size < vector.FEW:
        result: mx.array = _STOCK[name](x)
        return result
    if not vector.traced():
        return _values(x, piece)

    @mx.custom_function
    def activation(x: mx.array) -> mx.array:
        return _values(x, piece)

    @activation.vjp
    def activation_vjp(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
        return cotangent * _slopes(x, piece)

    found: Any = activation(x)
    whole: mx.array = found
    return whole


def _values(x: mx.array, piece: Piece) -> mx.array:
    return _some_rows_at_a_time(x, lambda out, own: piece(out, own, None))


@np.errstate(all="ignore")  # on the way back nothing is open
def _slopes(x: mx.array, piece: Piece) -> mx.array:
    """Computed again: keeping them would cost a buffer of this size per layer."""
    return _some_rows_at_a_time(
        x, lambda out, own: piece(np.empty(own.shape, np.float32), own, out)
    )


def _some_rows_at_a_time(
    x: mx.array, work: Callable[[vector.Floats, vector.Floats], None]
) -> mx.array:
    """`work` writes into its first argument what becomes of the rows in its second."""
    width = x.shape[-1]
    rows = vector.view(x).reshape(-1, width)

    def fill(place: vector.Floats) -> None:
        out = place.reshape(-1, width)
        for some in vector.pieces(len(rows), width):
            work(out[some], rows[some])

    return vector.made(x.shape, fill)


def _exact(out: vector.Floats, x: vector.Floats, slope: Slope) -> None:
    """x F(x) with the normal distribution F, whose slope is F(x) + x f(x)."""
    density = np.square(x, order="C")
    density *= -0.5
    vector.exp_in_place(density)
    # 1 / (1 + p |x| / sqrt 2)
    share = np.abs(x, order="C")
    share *= ERF_P / math.sqrt(2)
    share += 1.0
    np.reciprocal(share, out=share)
    # Half of what erf lacks to 1, by Horner's rule.
    np.multiply(share, ERF[-1] / 2, out=out)
    for factor in ERF[-2::-1]:
        out += factor / 2
        out *= share
    out *= density
    np.subtract(0.5, out, out=out)
    np.copysign(out, x, out=out)
    out += 0.5
    if slope is not None:
        np.multiply(density, x, out=slope)
        slope *= 1 / math.sqrt(2 * math.pi)
        slope += out
    out *= x


def _by_tanh(out: vector.Floats, x: vector.Floats, slope: Slope) -> None:
    """x (1 + tanh u) / 2 is x sigmoid(2u); u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    square = np.square(x, order="C")
    np.multiply(square, -2 * TANH_SCALE * CUBE, out=out)
    out -= 2 * TANH_SCALE
    out *= x
    vector.exp_in_place(out)
    out += 1.0
    np.reciprocal(out, out=out)
    if slope is not None:
        # s + x s (1 - s) 2u'
        square *= 6 * TANH_SCALE * CUBE
        square += 2 * TANH_SCALE
        np.subtract(1.0, out, out=slope)
        slope *= out
        # Where s (1 - s) is nothing, x may be anything.
        slope *= square
        slope *= x
        slope += out
    out *= x
