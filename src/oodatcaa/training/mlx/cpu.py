"""MLX's CPU device made usable for training: float32, and no quantised products.

Measured on 2 cores with a 135M model: half precision is emulated and slower than float32, and the
quantised product is the slowest of all. So weights are dequantised where they are used, inside
`mx.checkpoint`: the backward pass dequantises again instead of keeping float32 copies alive, and
memory stays that of the quantised model plus one layer's matrix. Only ever applied on the CPU.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map


def on_cpu() -> bool:
    """Whether computations run on MLX's CPU device (no Metal, no CUDA)."""
    return mx.default_device() == mx.cpu


def dense_product(layer: nn.Module, x: mx.array) -> mx.array:
    """`x @ W.T` with W dequantised now, and again in the backward pass.

    A single row (one token of a generation) takes the quantised product, which is quicker then.
    """

    def product(x: mx.array) -> mx.array:
        weight = mx.dequantize(
            layer["weight"],
            scales=layer["scales"],
            biases=layer.get("biases"),
            group_size=layer.group_size,
            bits=layer.bits,
            mode=layer.mode,
            dtype=x.dtype,
        )
        return x @ weight.T

    if x.size == x.shape[-1]:
        return _quantised_product(layer, x)
    # The weights are captured, not passed: the base model is frozen and nobody asks their gradient.
    result: mx.array = mx.checkpoint(product)(x)
    return result


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

    def __call__(self, x: mx.array) -> mx.array:
        y = dense_product(self, x)
        return y + self["bias"] if "bias" in self else y


class DenseProductEmbedding(nn.QuantizedEmbedding):  # type: ignore[misc]
    """A QuantizedEmbedding whose use as a tied output layer multiplies densely."""

    def __call__(self, x: mx.array) -> mx.array:
        rows: mx.array = super().__call__(x)
        return rows.astype(mx.float32)

    def as_linear(self, x: mx.array) -> mx.array:
        return dense_product(self, x)


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
    mx.eval(model.parameters())
    return True


def _to_float32(value: Any) -> Any:
    half = value.dtype in (mx.float16, mx.bfloat16)
    return value.astype(mx.float32) if half else value
