"""Affine quantised weights as float matrices, in a few passes of MLX's CPU device.

`mx.dequantize` has no kernel on the CPU: it takes every packed word apart in 32-bit integers, with
a strided copy that is most of its time. Here packed bytes are spread over wider words, so that each
byte of a word becomes one weight, in order: the same values to the last bit in half of the time.
MLX packs the first weight into the lowest bits.
"""

from __future__ import annotations

import sys

import mlx.core as mx
import numpy as np

BITS = (2, 4, 8)
"""Of which a whole number fills a byte; the others are left to MLX."""
PIECE_BYTES = 2 << 20
"""float32 of the rows that are dequantised at a time into a matrix that is kept."""


def dequantise(
    weight: mx.array,
    scales: mx.array,
    biases: mx.array | None,
    *,
    group_size: int,
    bits: int,
    mode: str,
) -> mx.array:
    """What `mx.dequantize` gives, in the type of `scales`: [rows, columns]."""
    known = mode == "affine" and biases is not None and weight.dtype == mx.uint32
    if not known or bits not in BITS or sys.byteorder != "little":
        plain: mx.array = mx.dequantize(
            weight, scales, biases, group_size=group_size, bits=bits, mode=mode
        )
        return plain
    assert biases is not None
    spread = _bytes(mx.view(weight, mx.uint8), bits).astype(scales.dtype)
    groups = spread.reshape(*scales.shape, group_size)
    found: mx.array = groups * scales[..., None] + biases[..., None]
    return found.reshape(*scales.shape[:-1], -1)


def dequantised(
    weight: mx.array,
    scales: mx.array,
    biases: mx.array | None,
    *,
    group_size: int,
    bits: int,
    mode: str,
    by_columns: bool = False,
) -> mx.array:
    """`dequantise` to float32, evaluated, for a matrix that is kept: a few rows at a time, so that
    making it takes no more than it is, and the same each time. `by_columns`: it lies in memory
    column after column, not row after row."""
    width = weight.shape[-1] * 32 // bits
    shape = (weight.shape[0], width)
    found = mx.zeros(shape[::-1] if by_columns else shape)
    found = found.T if by_columns else found
    mx.eval(found)
    # MLX's own buffer: nobody else refers to it yet.
    view = np.array(found, copy=False)
    size = max(1, PIECE_BYTES // (4 * width))
    for start in range(0, weight.shape[0], size):
        part = slice(start, start + size)
        rows = dequantise(
            weight[part],
            scales[part],
            None if biases is None else biases[part],
            group_size=group_size,
            bits=bits,
            mode=mode,
        )
        view[part] = np.array(rows.astype(mx.float32), copy=False)
    return found


def _bytes(packed: mx.array, bits: int) -> mx.array:
    """One byte for each weight."""
    if bits == 4:
        pairs = packed.astype(mx.uint16)
        packed = mx.view((pairs | (pairs << 4)) & 0x0F0F, mx.uint8)
    elif bits == 2:
        fours = packed.astype(mx.uint32)
        twos = (fours | (fours << 12)) & 0x000F000F
        packed = mx.view((twos | (twos << 6)) & 0x03030303, mx.uint8)
    return packed
