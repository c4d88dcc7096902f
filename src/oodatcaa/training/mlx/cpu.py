"""MLX's CPU device made usable for training: float32, and no quantised products.

Measured on 2 cores with a 135M model: half precision is emulated and slower than float32, and the
quantised product is the slowest of all. So weights are dequantised where they are used, inside
`mx.checkpoint`: the backward pass dequantises again instead of keeping float32 copies alive, and
memory stays that of the quantised model plus one layer's matrix. Only ever applied on the CPU.
Inside `vector.at_once()` products, silu and softmax are evaluated as they are met, so that the
exponentials can come from a vector library (see vector.py); outside they stay in MLX's graph.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.models import activations, base
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear

from oodatcaa.training.mlx import block_attention, products, vector
from oodatcaa.training.mlx.dense import dequantise, dequantised
from oodatcaa.training.protocol import fast_cpu_wanted

PIECE_BYTES, MOST_PIECES = 16 << 20, 2
"""Of a matrix that is dequantised for a product in the forward pass."""


def on_cpu() -> bool:
    """Whether computations run on MLX's CPU device (no Metal, no CUDA)."""
    return mx.default_device() == mx.cpu


def fast_cpu() -> bool:
    """Whether the measures of this module are in force: on the CPU, and not switched off."""
    return on_cpu() and fast_cpu_wanted()


@dataclass(frozen=True)
class _Stored:
    """A layer's quantised matrix outside of the module tree, whose arrays mlx-lm traces."""

    weight: mx.array
    scales: mx.array
    biases: mx.array | None
    how: dict[str, Any]
    held: mx.array | None = None
    """The matrix as float32, where it is kept (`hold_dense`)."""

    @classmethod
    def of(cls, layer: nn.Module) -> _Stored:
        how = {"group_size": layer.group_size, "bits": layer.bits, "mode": layer.mode}
        return cls(layer["weight"], layer["scales"], layer.get("biases"), how)

    def dense(self, dtype: mx.Dtype) -> mx.array:
        if self.held is not None:
            return self.held.astype(dtype)
        return dequantise(self.weight, self.scales, self.biases, **self.how).astype(dtype)

    def rows(self, wanted: slice, dtype: mx.Dtype) -> mx.array:
        if self.held is not None:
            return self.held[wanted].astype(dtype)
        biases = None if self.biases is None else self.biases[wanted]
        return dequantise(self.weight[wanted], self.scales[wanted], biases, **self.how).astype(
            dtype
        )

    def times(self, x: mx.array) -> mx.array:
        """`x @ W.T`, evaluated; of a large matrix a piece at a time is dense. An output layer as a
        whole takes gigabytes, and so do the stages of making it. A held one is cut in the same way:
        the same products, the same bits."""
        count = self.weight.shape[0]
        size = max(1, PIECE_BYTES // (4 * x.shape[-1]))
        if count <= MOST_PIECES * size:
            return products.transposed(x, self.dense(x.dtype))
        parts = []
        for start in range(0, count, size):
            rows = self.rows(slice(start, start + size), x.dtype)
            parts.append(products.transposed(x, rows))
        whole = mx.concatenate(parts, axis=-1)
        mx.eval(whole)
        return whole


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
        return x @ _Stored.of(layer).dense(x.dtype).T

    # The weights are captured, not passed: the base model is frozen and nobody asks their gradient.
    result: mx.array = mx.checkpoint(product)(x)
    return result


def _product_at_once(stored: _Stored, x: mx.array) -> mx.array:
    @mx.custom_function
    def product(x: mx.array) -> mx.array:
        return stored.times(vector.cut(x))

    @product.vjp
    def product_vjp(_: mx.array, cotangent: mx.array, __: mx.array) -> mx.array:
        return cotangent @ stored.dense(cotangent.dtype)

    result: Any = product(x)
    found: mx.array = result
    return found


_stock_lora = LoRALinear.__call__


def _lora(layer: LoRALinear, x: mx.array) -> mx.array:
    """`LoRALinear`, in one piece inside of `at_once()`.

    A trace keeps whatever was evaluated in it: the stock layer's product, its low-rank part, that
    part scaled and their sum would all stay until the backward pass, and none is needed there.
    """
    base = layer.linear
    dropped = layer.training and layer.dropout._p_1 < 1
    plain = isinstance(base, DenseProductLinear) and x.dtype == mx.float32 and not dropped
    if not (vector.active() and plain) or x.size == x.shape[-1]:
        result: mx.array = _stock_lora(layer, x)
        return result
    return _adapted_product(base.stored, base.get("bias"), layer.scale, x, layer)


def _adapted_product(
    stored: _Stored, bias: mx.array | None, scale: float, x: mx.array, layer: LoRALinear
) -> mx.array:
    offset = None if bias is None else vector.cut(bias)

    @mx.custom_function
    def product(x: mx.array, a: mx.array, b: mx.array) -> tuple[mx.array, mx.array]:
        x, a, b = vector.cut(x), vector.cut(a), vector.cut(b)
        y, low = products.adapted(stored.times(x), x, a, b, scale)
        y = y if offset is None else y + offset
        mx.eval(y)
        return y, low

    @product.vjp
    def product_vjp(
        primals: tuple[mx.array, mx.array, mx.array],
        cotangents: tuple[mx.array, mx.array],
        outputs: tuple[mx.array, mx.array],
    ) -> tuple[mx.array, mx.array, mx.array]:
        (x, a, b), cotangent, low = primals, cotangents[0], outputs[1]
        d_low = (cotangent @ b.T) * scale
        d_a = _rows(x).T @ _rows(d_low)
        d_b = _rows(low).T @ _rows(cotangent)
        return mx.addmm(cotangent @ stored.dense(cotangent.dtype), d_low, a.T), d_a, d_b

    result: Any = product(x, layer.lora_a, layer.lora_b)
    found: mx.array = result[0]
    return found


def _rows(x: mx.array) -> mx.array:
    return x.reshape(-1, x.shape[-1])


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


FEW = 1 << 15
"""Below so many elements leaving MLX's graph costs more than its slow exponential."""
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
            module.stored = _Stored.of(module)
    _route(model)
    mx.eval(model.parameters())
    return True


def hold_dense(model: nn.Module) -> None:
    """Let the blocks of a model that `speed_up` saw keep float32 copies of their quantised
    matrices: the same values, not computed anew for every product, in 4 bytes for each weight."""
    for block in model.layers:
        # A DoRA layer dequantises what it adapts itself.
        passed = {id(one.linear) for one in block.modules() if isinstance(one, DoRALinear)}
        for module in block.modules():
            if id(module) in passed:
                continue
            if type(module) is DenseProductLinear and module.stored.held is None:
                stored: _Stored = module.stored
                parts = stored.weight, stored.scales, stored.biases
                module.stored = replace(stored, held=dequantised(*parts, **stored.how))


def _route(model: nn.Module) -> None:
    """Let the modules of the model's own source call the functions below instead of mlx-lm's.

    mlx-lm's models import both by name, so it is their names that are bound anew, in this process
    only. A model that calls something else keeps it: slower, and just as right.
    """
    LoRALinear.__call__ = _lora
    for name in {type(module).__module__ for module in model.modules()}:
        home: Any = sys.modules[name]
        if getattr(home, "swiglu", None) is activations.swiglu:
            home.swiglu = _swiglu
        if getattr(home, "scaled_dot_product_attention", None) is _STOCK_ATTENTION:
            home.scaled_dot_product_attention = _attention


def _swiglu(gate: mx.array, x: mx.array) -> mx.array:
    if not vector.active() or gate.size < FEW or gate.dtype != mx.float32:
        result: mx.array = activations.swiglu(gate, x)
    else:
        at_once: Any = vector.swiglu(gate, x)
        result = at_once
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
    few = queries.shape[0] * queries.shape[1] * length * span < FEW
    special = cache is not None or sinks is not None or queries.dtype != mx.float32
    if not vector.active() or few or special:
        result: mx.array = _STOCK_ATTENTION(queries, keys, values, cache, scale, mask, sinks)
    elif (meaning := block_attention.meaning_of(mask)) is not None:
        result = block_attention.attention(queries, keys, values, scale, meaning)
    else:
        added = vector.additive(mask, length, span)
        result = vector.attention(queries, keys, values, scale, added)
    return result


def _to_float32(value: Any) -> Any:
    half = value.dtype in (mx.float16, mx.bfloat16)
    return value.astype(mx.float32) if half else value
