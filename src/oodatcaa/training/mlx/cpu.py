"""MLX's CPU device made usable for training: float32, and no quantised products.

Measured on 2 cores with a 135M model: half precision is emulated and slower than float32, and the
quantised product is the slowest of all. So weights are dequantised where they are used, inside
`mx.checkpoint`: the backward pass dequantises again instead of keeping float32 copies alive, and
memory stays that of the quantised model plus one layer's matrix. Only ever applied on the CPU.
Inside `vector.at_once()` products, norms, rotations, silu, gelu and softmax are evaluated as they
are met, so that numpy and a vector library can compute them (see vector.py); outside they stay in
MLX's graph.
"""

from __future__ import annotations

import sys
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.models import activations, base

from oodatcaa.training.mlx import adapted, attention, block_attention, gelu, norms, rotary, vector
from oodatcaa.training.mlx.stored import Stored
from oodatcaa.training.protocol import fast_cpu_wanted


def on_cpu() -> bool:
    """Whether computations run on MLX's CPU device (no Metal, no CUDA)."""
    return mx.default_device() == mx.cpu


def fast_cpu() -> bool:
    """Whether the measures of this module are in force: on the CPU, and not switched off."""
    return on_cpu() and fast_cpu_wanted()


def dense_product(layer: nn.Module, x: mx.array) -> mx.array:
    """`x @ W.T` with W dequantised now, and again in the backward pass.

    A single row (one token of a generation) takes the quantised product, which is quicker then.
    """
    if x.size == x.shape[-1]:
        return _quantised_product(layer, x)
    if vector.active() and x.dtype == mx.float32:
        return _product_at_once(layer.stored, x)

    if layer.stored.held is not None:
        held: mx.array = x @ layer.stored.dense(x.dtype).T
        return held

    def product(x: mx.array) -> mx.array:
        return x @ Stored.of(layer).dense(x.dtype).T

    # The weights are captured, not passed: the base model is frozen and nobody asks their gradient.
    result: mx.array = mx.checkpoint(product)(x)
    return result


def _product_at_once(stored: Stored, x: mx.array) -> mx.array:
    if not vector.traced():
        return stored.times(x)

    @mx.custom_function
    def product(x: mx.array) -> mx.array:
        return stored.times(x)

    @product.vjp
    def product_vjp(_: mx.array, cotangent: mx.array, __: mx.array) -> mx.array:
        return cotangent @ stored.dense(cotangent.dtype)

    result: Any = product(x)
    found: mx.array = result
    return found


def _quantised_product(layer: nn.Module, x: mx.array) -> mx.array:
    result: mx.array = mx.quantized_matmul(
        x,
        layer["weight"],
        scales=layer["scales"],
        biases=layer.get("biases"),
        transpose=True,
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
    )
    return result


class DenseProductLinear(nn.QuantizedLinear):  # type: ignore[misc]
    """A QuantizedLinear (still one for isinstance, saving and LoRA) that multiplies densely."""

    multiplies_densely = True

    def __call__(self, x: mx.array) -> mx.array:
        y = dense_product(self, x)
        return y + self["bias"] if "bias" in self else y


class DenseProductEmbedding(nn.QuantizedEmbedding):  # type: ignore[misc]
    """A QuantizedEmbedding whose use as a tied output layer multiplies densely."""

    multiplies_densely = True

    def __call__(self, x: mx.array) -> mx.array:
        rows: mx.array = super().__call__(x)
        return rows.astype(mx.float32)

    def as_linear(self, x: mx.array) -> mx.array:
        return dense_product(self, x)


_STOCK_ATTENTION = base.scaled_dot_product_attention

_FASTER: dict[type[nn.Module], type[nn.Module]] = {
    nn.QuantizedLinear: DenseProductLinear,
    nn.QuantizedEmbedding: DenseProductEmbedding,
}


def speed_up(model: nn.Module) -> bool:
    """Apply the CPU measures to a freshly loaded model, in place; whether anything was done.

    Does nothing on Metal or CUDA. Exact layer types only: subclasses with their own product keep
    it. Losses and gradients equal the stock path's within float tolerance.
    """
    if not on_cpu():
        return False
    # Fusing on the CPU means a run of g++ for each new kernel: 16 s at the first step where it is
    # installed, and no measurable gain at these sizes.
    mx.disable_compile()
    model.update(tree_map(_to_float32, model.parameters()))
    for module in model.modules():
        if (faster := _FASTER.get(type(module))) is not None:
            # Swapping the class keeps the very same parameters, names and configuration.
            module.__class__ = faster
            module.stored = Stored.of(module)
    _route(model)
    mx.eval(model.parameters())
    return True


def hold_dense(model: nn.Module, *, by_columns: bool = False) -> None:
    """Let the blocks of a model that `speed_up` saw keep float32 copies of their quantised
    matrices: the same values, not computed anew for every product, in 4 bytes for each weight.

    `by_columns`: as numpy's OpenBLAS reads the transpose in order, which is up to 5 % faster. MLX
    would copy what it multiplies with or adds to.
    """
    for block in model.layers:
        for module in block.modules():
            if type(module) is DenseProductLinear:
                module.stored = module.stored.hold(by_columns=by_columns)


def _route(model: nn.Module) -> None:
    """Let the modules of the model's own source call the functions below instead of mlx-lm's.

    mlx-lm's models import attention and activations by name, so it is their names that are bound
    anew; layers and `mx.fast` are changed themselves. In this process only. A model that calls
    something else keeps it: slower, and just as right.
    """
    adapted.route()
    gelu.route()
    norms.route()
    rotary.route()
    for name in {type(module).__module__ for module in model.modules()}:
        home: Any = sys.modules[name]
        if getattr(home, "swiglu", None) is activations.swiglu:
            home.swiglu = _swiglu
        if getattr(home, "scaled_dot_product_attention", None) is _STOCK_ATTENTION:
            home.scaled_dot_product_attention = _attention


def _swiglu(gate: mx.array, x: mx.array) -> mx.array:
    alike = gate.dtype == x.dtype == mx.float32 and gate.shape == x.shape
    if not vector.active() or gate.size < vector.FEW or not alike:
        result: mx.array = activations.swiglu(gate, x)
    else:
        result = vector.swiglu(gate, x)
    return result


def _attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    cache: Any,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None = None,
) -> mx.array:
    length, span = queries.shape[2], keys.shape[2]
    few = queries.shape[0] * queries.shape[1] * length * span < vector.FEW
    special = cache is not None or sinks is not None or queries.dtype != mx.float32
    if not vector.active() or few or special:
        result: mx.array = _STOCK_ATTENTION(queries, keys, values, cache, scale, mask, sinks)
    elif (meaning := block_attention.meaning_of(mask)) is not None:
        result = block_attention.attention(queries, keys, values, scale, meaning)
    else:
        added = attention.additive(mask, length, span)
        result = attention.attention(queries, keys, values, scale, added)
    return result


def _to_float32(value: Any) -> Any:
    half = value.dtype in (mx.float16, mx.bfloat16)
    return value.astype(mx.float32) if half else value
