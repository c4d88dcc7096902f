"""Attention as `mx.fast.scaled_dot_product_attention`, where layers evaluate as they are met."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import mlx.core as mx
import numpy as np

from oodatcaa.training.mlx import products, vector

MASKED = -1e9
"""Added to masked scores: far below every score, and finite, so that no row becomes NaN."""


def attention(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | None
) -> mx.array:
    """For float32 and an additive `mask`.

    Shapes [B, N, T, D], [B, K, S, D], [B, K, S, D] with N a multiple of K; `mask` is [T, S] or
    broadcasts with [B, N, T, S].
    """
    if not vector.traced():
        return _attended(queries, keys, values, scale, mask)[0]

    @mx.custom_function
    def attend(q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        return _attended(q, k, v, scale, mask)

    @attend.vjp
    def attend_vjp(
        primals: tuple[mx.array, ...],
        cotangents: tuple[mx.array, mx.array],
        outputs: tuple[mx.array, mx.array],
    ) -> tuple[mx.array, mx.array, mx.array]:
        return attention_vjp(primals, scale, *outputs, cotangents[0])

    found: Any = attend(queries, keys, values)
    result: mx.array = found[0]
    return result


def _attended(
    q: mx.array, k: mx.array, v: mx.array, scale: float, mask: mx.array | None
) -> tuple[mx.array, mx.array]:
    """What attention gives, and the weights [B, K, heads of a key head * T, S]."""
    batch, heads, length, _ = q.shape
    scores = grouped_scores(q, k, scale)
    if mask is None or mask.ndim == 2:
        p = vector.softmax_of(scores, None if mask is None else vector.view(mask))
    else:
        whole = vector.view(scores).reshape(batch, heads, length, -1)
        whole += vector.view(mask)
        p = vector.softmax_of(scores)
    return products.stacked(p, v).reshape(batch, heads, length, -1), p


def grouped_scores(q: mx.array, k: mx.array, scale: float) -> mx.array:
    """Of queries and keys, all query heads of one key head in one product: fewer and larger
    matrices. [B, K, heads of a key head * T, S]"""
    grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
    return products.stacked_transposed(grouped, k, scale)


def attention_vjp(
    primals: tuple[mx.array, ...], scale: float, out: mx.array, p: mx.array, d_out: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """The gradients of queries, keys and values (`primals`) for that of `out`; `p` is softmax's."""
    q, k, v = primals
    rows = (*p.shape[:-1], v.shape[3])
    d_rows = d_out.reshape(rows)
    delta = vector.sums(d_rows * out.reshape(rows))
    d_scores = p * (d_rows @ v.swapaxes(-1, -2) - delta)
    d_q = ((d_scores @ k) * scale).reshape(q.shape)
    d_k = d_scores.swapaxes(-1, -2) @ (q.reshape(*p.shape[:-1], q.shape[3]) * scale)
    return d_q, d_k, p.swapaxes(-1, -2) @ d_rows


@lru_cache(maxsize=2)  # a thread that is done begins with the next batch
def _causal(length: int, span: int) -> mx.array:
    """One for all blocks of a batch: a trace keeps each that it meets until it ends."""
    hidden = np.triu(np.full((length, span), MASKED, np.float32), span - length + 1)
    return mx.array(hidden)


def additive(mask: mx.array | str | None, length: int, span: int) -> mx.array | None:
    """mlx-lm's mask (None, "causal", boolean = may be seen, or additive) as something to add."""
    if mask is None:
        return None
    if isinstance(mask, str):
        return _causal(length, span)
    if mask.dtype == mx.bool_:
        return mx.where(mask, mx.array(0.0), mx.array(MASKED))
    return mask.astype(mx.float32)
