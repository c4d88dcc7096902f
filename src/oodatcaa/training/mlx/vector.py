"""Element-wise work on MLX's CPU device, evaluated as it is met.

MLX's CPU build computes `exp` one element at a time: 17 ns each, where MKL's vector mathematics
or numpy's SIMD loop need one to three. Silu, softmax and cross entropy are made of them, and with
a real BLAS underneath they were most of a training step. And each of MLX's operations is handed to
a thread of its stream, for which small ones wait longer than they take. So the functions here (and
in attention.py, norms.py and rotary.py) evaluate their input at once and let numpy and the vector
library work on the buffers, most of them some rows at a time, which stay in the processor's cache.
float32 only, CPU only, and only inside `at_once()`: whoever traces a gradient decides whether that
is worth its memory.
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np

from oodatcaa.training.mlx.blas import numpy_is_faster, preloaded

Floats = np.ndarray[Any, np.dtype[np.float32]]

VML_MODE = 0x2 | 0x280000 | 0x2000
"""mkl_vml_defines.h: high accuracy (below one unit in the last place), denormals are zero, and no
error reports: with them every masked score, whose exponential underflows, costs 80 ns."""
MOST_ELEMENTS = 1 << 30
"""MKL's LP64 interface counts in 32 bits."""
FEW = 1 << 15
"""Below so many elements leaving MLX's graph costs more than its slow exponential."""
PIECE = 1 << 16
"""Elements of a buffer that are worked on at a time: 256 KB, which stay in a core's own cache."""
SMALL_BYTES = 4 << 20
"""Below, a result is computed in numpy's memory and copied, which is faster than to have MLX fill
a place with zeros."""


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
        # A model that diverges has infinite numbers: its loss is NaN, and the step's check tells.
        with np.errstate(all="ignore"):
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
def _library_exp() -> Callable[[Floats], None]:
    """MKL's when it is preloaded, else numpy's."""
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


@np.errstate(over="ignore")  # a sigmoid far below zero; MKL's says nothing either
def _numpy_exp(values: Floats) -> None:
    np.exp(values, out=values)


def exp_in_place(values: Floats) -> None:
    """Of a buffer in row order, by the vector library; where products are numpy's (products.py)
    by numpy, which takes 0.5 ns an element there instead of MKL's 0.8 on one thread."""
    if not values.flags.c_contiguous:
        raise ValueError("not one piece of memory: the exponentials would be lost in a copy")
    (_numpy_exp if numpy_is_faster() else _library_exp())(values.reshape(-1))


def exp_of(fresh: mx.array) -> mx.array:
    """exp of a float32 array that the caller has just computed and nobody else refers to.

    Evaluates it and overwrites its buffer; returns the array.
    """
    fresh = _in_order(fresh)
    exp_in_place(view(fresh))
    return fresh


def _in_order(fresh: mx.array) -> mx.array:
    """Row by row in one piece of memory: only then writing into a reshaped view reaches it."""
    return fresh if view(fresh).flags.c_contiguous else mx.contiguous(fresh)


def view(x: mx.array) -> Floats:
    """numpy's view of `x`, evaluated. What is computed from it has no history in a trace."""
    mx.eval(x)
    return np.array(x, copy=False)


def made(shape: tuple[int, ...], fill: Callable[[Floats], object]) -> mx.array:
    """A float32 array that `fill` has written into; it is given the place, with anything in it."""
    return made_together(shape, 1, fill)[0]


def made_together(
    shape: tuple[int, ...], count: int, fill: Callable[..., object]
) -> list[mx.array]:
    """Several of one shape, of which `fill` is given the places."""
    if 4 * math.prod(shape) < SMALL_BYTES:
        places = [np.empty(shape, np.float32) for _ in range(count)]
        fill(*places)
        return [mx.array(place) for place in places]
    whole = [mx.zeros(shape) for _ in range(count)]
    mx.eval(whole)
    # MLX's own buffers: nobody else refers to them yet.
    fill(*map(view, whole))
    return whole


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
    return [_copied(x) for x in whole]


def _copied(x: mx.array) -> mx.array:
    if x.dtype == mx.bfloat16:  # numpy has none
        return _copied(mx.view(x, mx.uint16)).view(mx.bfloat16)
    return mx.array(np.array(x, copy=False))


def pieces(rows: int, width: int) -> Iterator[slice]:
    """Of so many rows, each time those with PIECE elements, one row at least."""
    size = max(1, PIECE // max(1, width))
    for start in range(0, rows, size):
        yield slice(start, start + size)


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """`silu(gate) * x`, as mlx-lm's `activations.swiglu`, for two arrays of one shape."""
    if not traced():
        return _gated(gate, x)
    found: Any = _swiglu(gate, x)
    result: mx.array = found
    return result


def _gated(gate: mx.array, x: mx.array) -> mx.array:
    width = gate.shape[-1]
    gates, others = (view(a).reshape(-1, width) for a in (gate, x))

    def fill(place: Floats) -> None:
        rows = place.reshape(-1, width)
        for piece in pieces(len(rows), width):
            out, own = rows[piece], gates[piece]
            _sigmoid_into(out, own)
            out *= own
            out *= others[piece]

    return made(gate.shape, fill)


def _sigmoid_into(place: Floats, values: Floats) -> None:
    np.negative(values, out=place)
    exp_in_place(place)
    place += 1.0
    np.reciprocal(place, out=place)


@mx.custom_function
def _swiglu(gate: mx.array, x: mx.array) -> mx.array:
    return _gated(gate, x)


@_swiglu.vjp
def _swiglu_vjp(
    primals: tuple[mx.array, mx.array], cotangent: mx.array, _: mx.array
) -> tuple[mx.array, mx.array]:
    # Computed again: keeping anything would cost a buffer of this size per layer.
    gate, x = primals
    by_gate, by_x = _slopes(gate, x)
    return cotangent * by_gate, cotangent * by_x


@np.errstate(all="ignore")  # on the way back nothing is open
def _slopes(gate: mx.array, x: mx.array) -> tuple[mx.array, mx.array]:
    """Of `silu(gate) * x`: s = sigmoid(gate) makes them x * s * (1 + gate * (1 - s)) and
    gate * s."""
    width = gate.shape[-1]
    gates, others = (view(a).reshape(-1, width) for a in (gate, x))

    def fill(*places: Floats) -> None:
        by_gate, by_x = (place.reshape(-1, width) for place in places)
        for piece in pieces(len(gates), width):
            out, own, silu = by_gate[piece], gates[piece], by_x[piece]
            _sigmoid_into(out, own)
            np.multiply(own, out, out=silu)
            # x * (s + silu * (1 - s))
            rest = 1.0 - out
            rest *= silu
            out += rest
            out *= others[piece]

    by_gate, by_x = made_together(gate.shape, 2, fill)
    return by_gate, by_x


def sums(values: mx.array) -> mx.array:
    """Over the last axis, which stays with length 1. A product with ones takes a tenth of the time
    of MLX's loop for rows of 2,048 on the CPU, a third for rows of 127."""
    total: mx.array = values @ mx.ones((values.shape[-1], 1))
    return total


def softmax_of(fresh: mx.array, mask: Floats | None = None) -> mx.array:
    """Over the last axis, of a float32 array that the caller has just computed and nobody else
    refers to: its buffer is overwritten. `mask` is added to it first: [rows, columns], for every
    `rows` rows anew."""
    fresh = _in_order(fresh)
    width = fresh.shape[-1]
    rows = view(fresh).reshape(-1, 1 if mask is None else mask.shape[-2], width)
    for several in pieces(len(rows), rows.shape[1] * width):
        # All rows of several matrices, or some of one: in both cases they are one piece of memory.
        for piece in pieces(rows.shape[1], width):
            some = rows[several, piece]
            if mask is not None:
                some += mask[piece]
            some -= some.max(axis=-1, keepdims=True)
            exp_in_place(some)
            some /= np.einsum("abc->ab", some)[..., None]
    return fresh
