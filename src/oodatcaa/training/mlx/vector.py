"""The exponentials of a transformer on MLX's CPU device, without MLX's own exponential.

MLX's CPU build computes `exp` one element at a time: 17 ns each, where MKL's vector mathematics
or numpy's SIMD loop need one to three. Silu, softmax and cross entropy are made of them, and with
a real BLAS underneath they were most of a training step. So the functions here evaluate their
input at once and let the vector library work on MLX's own buffer. float32 only, CPU only, and
only inside `at_once()`: whoever traces a gradient decides whether that is worth its memory.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

from oodatcaa.training.mlx.blas import preloaded

Floats = np.ndarray[Any, np.dtype[np.float32]]

VML_MODE = 0x2 | 0x280000 | 0x2000
"""mkl_vml_defines.h: high accuracy (below one unit in the last place), denormals are zero, and no
error reports: with them every masked score, whose exponential underflows, costs 80 ns."""
MOST_ELEMENTS = 1 << 30
"""MKL's LP64 interface counts in 32 bits."""
MASKED = -1e9
"""Added to masked scores: far below every score, and finite, so that no row becomes NaN."""


class _Open(threading.local):
    depth = 0
    traced = True


_open = _Open()


@contextmanager
def at_once(*, traced: bool = True) -> Iterator[None]:
    """Inside, this thread's CPU layers evaluate as they go (`cpu.speed_up`); may be nested.
    `traced=False` where nobody traces a gradient meanwhile: less has to be copied."""
    before = _open.traced
    _open.depth += 1
    _open.traced = traced
    try:
        yield
    finally:
        _open.depth -= 1
        _open.traced = before


def active() -> bool:
    """Whether this thread has an `at_once()` open."""
    return _open.depth > 0


def traced() -> bool:
    """Whether a gradient may be traced through what this thread computes; false only inside of
    `at_once(traced=False)`."""
    return _open.traced


@cache
def _exp_in_place() -> Callable[[Floats], None]:
    """For a contiguous buffer: MKL's when it is preloaded, else numpy's."""
    blas = preloaded()
    if blas is None or blas.name != "MKL":
        return _numpy_exp
    call = ctypes.CDLL(blas.path).vmsExp
    call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    call.restype = None

    def exp(values: Floats) -> None:
        for start in range(0, values.size, MOST_ELEMENTS):
            part = values[start : start + MOST_ELEMENTS]
            call(part.size, part.ctypes.data, part.ctypes.data, VML_MODE)

    return exp


def _numpy_exp(values: Floats) -> None:
    np.exp(values, out=values)


def exp_of(fresh: mx.array) -> mx.array:
    """exp of a float32 array that the caller has just computed and nobody else refers to.

    Evaluates it and overwrites its buffer; returns the array.
    """
    mx.eval(fresh)
    view = np.array(fresh, copy=False)
    if not view.flags.c_contiguous:
        fresh = mx.contiguous(fresh)
        mx.eval(fresh)
        view = np.array(fresh, copy=False)
    _exp_in_place()(view.reshape(-1))
    return fresh


def cut(x: mx.array) -> mx.array:
    """The value of `x` without its history.

    While MLX traces a gradient, whatever is evaluated and depends on a traced array is kept until
    the trace ends. What is computed from a cut array is freed as soon as nobody refers to it.
    Where nothing is traced an evaluated array has no history.
    """
    return cut_all([x])[0]


def cut_all(arrays: Iterable[mx.array]) -> list[mx.array]:
    """`cut` of each; evaluates them together."""
    whole = list(arrays)
    mx.eval(whole)
    if not _open.traced:
        return whole
    return [mx.array(np.array(x, copy=False)) for x in whole]


def sigmoid(x: mx.array) -> mx.array:
    """1 / (1 + exp(-x)), elementwise."""
    return 1.0 / (1.0 + exp_of(-x))


@mx.custom_function
def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """`silu(gate) * x`, as mlx-lm's `activations.swiglu`."""
    gate, x = cut(gate), cut(x)
    out = gate * sigmoid(gate) * x
    mx.eval(out)
    return out


@swiglu.vjp
def _swiglu_vjp(
    primals: tuple[mx.array, mx.array], cotangent: mx.array, _: mx.array
) -> tuple[mx.array, mx.array]:
    gate, x = (cut(a) for a in primals)
    # The sigmoid is computed again: keeping it would cost a buffer of this size per layer.
    s = sigmoid(gate)
    inner = cotangent * s
    return inner * x * (1.0 + gate * (1.0 - s)), inner * gate


def maxima(values: mx.array) -> mx.array:
    """Over the last axis, which stays with length 1. Evaluates its input. numpy's loop takes a
    tenth of the time of MLX's for rows of 2,048 on the CPU, and about the same for rows of 127."""
    mx.eval(values)
    return mx.array(np.array(values, copy=False).max(axis=-1, keepdims=True))


def sums(values: mx.array) -> mx.array:
    """Over the last axis, which stays with length 1. A product with ones takes a tenth of the time
    of MLX's loop for rows of 2,048 on the CPU, a third for rows of 127."""
    total: mx.array = values @ mx.ones((values.shape[-1], 1))
    return total


def softmax(scores: mx.array) -> mx.array:
    """Over the last axis."""
    e = exp_of(scores - maxima(scores))
    return e / sums(e)


def softmax_of(fresh: mx.array) -> mx.array:
    """The same of an array as `exp_of` wants it. Small ones are quicker so: nothing waits for
    MLX's thread."""
    mx.eval(fresh)
    view = np.array(fresh, copy=False)
    view -= view.max(axis=-1, keepdims=True)
    e = exp_of(fresh)
    return e / sums(e)


def attention(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array | None
) -> mx.array:
    """As `mx.fast.scaled_dot_product_attention`, for float32 and an additive `mask`.

    Shapes [B, N, T, D], [B, K, S, D], [B, K, S, D] with N a multiple of K; `mask` is [T, S] or
    broadcasts with [B, N, T, S].
    """

    @mx.custom_function
    def attend(q: mx.array, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
        q, k, v = cut(q), cut(k), cut(v)
        batch, heads, length, _ = q.shape
        groups, span = k.shape[1], k.shape[2]
        # All query heads of one key head in one product: fewer and larger matrices.
        scores = (q * scale).reshape(batch, groups, -1, q.shape[3]) @ k.swapaxes(-1, -2)
        if mask is not None:
            scores = scores.reshape(batch, heads, length, span) + mask
            scores = scores.reshape(batch, groups, -1, span)
        p = softmax(scores)
        out = (p @ v).reshape(batch, heads, length, -1)
        mx.eval(out, p)
        return out, p

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


def attention_vjp(
    primals: tuple[mx.array, ...], scale: float, out: mx.array, p: mx.array, d_out: mx.array
) -> tuple[mx.array, mx.array, mx.array]:
    """The gradients of queries, keys and values (`primals`) for that of `out`; `p` is softmax's."""
    q, k, v = primals
    rows = (*p.shape[:-1], v.shape[3])
    d_rows = d_out.reshape(rows)
    delta = sums(d_rows * out.reshape(rows))
    d_scores = p * (d_rows @ v.swapaxes(-1, -2) - delta)
    d_q = ((d_scores @ k) * scale).reshape(q.shape)
    d_k = d_scores.swapaxes(-1, -2) @ (q.reshape(*p.shape[:-1], q.shape[3]) * scale)
    return d_q, d_k, p.swapaxes(-1, -2) @ d_rows


def additive(mask: mx.array | str | None, length: int, span: int) -> mx.array | None:
    """mlx-lm's mask (None, "causal", boolean = may be seen, or additive) as something to add."""
    if mask is None:
        return None
    if isinstance(mask, str):
        rows = mx.arange(span - length, span)[:, None]
        mask = rows >= mx.arange(span)[None]
    if mask.dtype == mx.bool_:
        return mx.where(mask, mx.array(0.0), mx.array(MASKED))
    return mask
