"""`mx.fast.rope` (Su et al. 2021, "RoFormer"), where layers evaluate as they are met.

On the CPU MLX makes it of a dozen operations, the sines and cosines among them, one element at a
time.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from oodatcaa.training.mlx import vector

_stock = mx.fast.rope


def route() -> None:
    """Have it computed here, in this process. mlx-lm's models and MLX's layers all ask it by this
    name."""
    fast: Any = mx.fast
    fast.rope = _rope


def _rope(
    x: mx.array,
    dims: int,
    *,
    traditional: bool,
    base: float | None,
    scale: float,
    offset: Any,
    freqs: mx.array | None = None,
    **options: Any,
) -> mx.array:
    plain = x.dtype == mx.float32 and type(offset) is int and not traditional and not options
    plain = plain and dims % 2 == 0 and 0 < dims <= x.shape[-1] and x.ndim > 2
    known = (freqs is None) != (base is None)
    if freqs is not None:
        known = known and freqs.dtype == mx.float32 and freqs.shape == (dims // 2,)
    if not vector.active() or not plain or not known or x.size < vector.FEW:
        result: mx.array = _stock(
            x, dims, traditional=traditional, base=base, scale=scale, offset=offset, freqs=freqs,
            **options,
        )  # fmt: skip
        return result
    if freqs is not None:
        rates = vector.view(freqs)
    else:
        assert base is not None
        rates = (float(base) ** (np.arange(dims // 2) * 2 / dims)).astype(np.float32)
    places = (np.arange(x.shape[-2], dtype=np.float32) + np.float32(offset)) * np.float32(scale)
    angles = places[:, None] / rates
    cosines, sines = np.cos(angles), np.sin(angles)
    if not vector.traced():
        return _rotated(x, cosines, sines)

    @mx.custom_function
    def rotate(x: mx.array) -> mx.array:
        return _rotated(x, cosines, sines)

    @rotate.vjp
    def rotate_vjp(_: mx.array, cotangent: mx.array, __: mx.array) -> mx.array:
        # The transpose of a rotation is the one by as much the other way round.
        half, by, across = dims // 2, mx.array(cosines), mx.array(sines)
        first, second = cotangent[..., :half], cotangent[..., half:dims]
        back = [first * by + second * across, second * by - first * across]
        whole: mx.array = mx.concatenate([*back, cotangent[..., dims:]], axis=-1)
        return whole

    found: Any = rotate(x)
    turned: mx.array = found
    return turned


def _rotated(x: mx.array, cosines: vector.Floats, sines: vector.Floats) -> mx.array:
    """[..., T, D] with [T, half of what is turned] each."""
    half = cosines.shape[-1]
    whole = vector.view(x)
    first, second = whole[..., :half], whole[..., half : 2 * half]

    def fill(place: vector.Floats) -> None:
        for out, a, b, sign in (
            (place[..., :half], first, second, -1),
            (place[..., half : 2 * half], second, first, 1),
        ):
            np.multiply(a, cosines, out=out)
            out += b * (sign * sines)
        place[..., 2 * half :] = whole[..., 2 * half :]

    return vector.made(x.shape, fill)
