"""mlx-lm's LoRA and DoRA layers, each in one piece inside of `vector.at_once()`.

A trace keeps whatever was evaluated in it: a stock layer's product, its low-rank part, that part
scaled and their sum would all stay until the backward pass, and none is needed there. Of DoRA's,
dense matrices would.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear

from oodatcaa.training.mlx import products, vector
from oodatcaa.training.mlx.randomness import Drop, drop_of
from oodatcaa.training.mlx.stored import Stored

_stock_lora, _stock_dora = LoRALinear.__call__, DoRALinear.__call__


def route() -> None:
    """Have both kinds of layers computed here, in this process."""
    LoRALinear.__call__ = _lora
    DoRALinear.__call__ = _dora


def prepare(network: nn.Module) -> None:
    """Put the float32 matrices that get adapters beside the module tree, too, as `cpu.speed_up`
    does with quantised ones: a traced one would keep what depends on it."""
    for layer in network.modules():
        if isinstance(layer, (LoRALinear, DoRALinear)) and type(layer.linear) is nn.Linear:
            layer.linear.stored = Stored.of(layer.linear)


def _lora(layer: LoRALinear, x: mx.array) -> mx.array:
    stored = _matrix(layer, x)
    if stored is None:
        result: mx.array = _stock_lora(layer, x)
        return result
    return _lora_product(layer, stored, x)


def _dora(layer: DoRALinear, x: mx.array) -> mx.array:
    stored = _matrix(layer, x)
    # With a magnitude of zero its gradient can not be told from the output.
    if stored is None or not vector.cut(layer.m).all().item():
        result: mx.array = _stock_dora(layer, x)
        return result
    return _dora_product(layer, stored, x)


def _matrix(layer: nn.Module, x: mx.array) -> Stored | None:
    """That of the adapted layer; None where the stock layer is as good."""
    if not vector.active() or x.dtype != mx.float32 or x.size == x.shape[-1]:
        return None
    stored: Stored | None = getattr(layer.linear, "stored", None)
    return stored


def _bias(layer: nn.Module) -> mx.array | None:
    bias = layer.linear.get("bias")
    return None if bias is None else vector.cut(bias)


def _lora_product(layer: LoRALinear, stored: Stored, x: mx.array) -> mx.array:
    offset, drop, scale = _bias(layer), drop_of(layer.dropout), layer.scale

    def forward(x: mx.array, a: mx.array, b: mx.array) -> tuple[mx.array, mx.array]:
        if drop is not None:
            x = vector.cut(x)
        y, low = products.adapted(stored.times(x), _dropped(x, drop), a, b, scale)
        if offset is not None:
            whole = vector.view(y)
            whole += vector.view(offset)
        return y, low

    if not vector.traced():
        return forward(x, layer.lora_a, layer.lora_b)[0]

    @mx.custom_function
    def product(x: mx.array, a: mx.array, b: mx.array) -> tuple[mx.array, mx.array]:
        return forward(x, a, b)

    @product.vjp
    def product_vjp(
        primals: tuple[mx.array, mx.array, mx.array],
        cotangents: tuple[mx.array, mx.array],
        outputs: tuple[mx.array, mx.array],
    ) -> tuple[mx.array, mx.array, mx.array]:
        return _back(stored, *primals, outputs[1], cotangents[0], scale, drop)

    result: Any = product(x, layer.lora_a, layer.lora_b)
    found: mx.array = result[0]
    return found


def _dora_product(layer: DoRALinear, stored: Stored, x: mx.array) -> mx.array:
    """Liu et al. 2024, equation 11: no gradient through the norm of the adapted matrix."""
    offset, drop, scale = _bias(layer), drop_of(layer.dropout), layer.scale

    @mx.custom_function
    def product(x: mx.array, a: mx.array, b: mx.array, m: mx.array) -> tuple[mx.array, ...]:
        x, a, b, m = vector.cut_all((x, a, b, m))
        y, norms = stored.times_and_norms(x, a, b, scale)
        y, low = products.adapted(y, _dropped(x, drop), a, b, scale)
        size = m / norms
        y = y * size
        if offset is None:
            mx.eval(y, size)
            return y, low, size
        whole = y + offset
        mx.eval(whole, y, size)
        # Without the bias as well: taking a large one off again would lose digits.
        return whole, low, size, y

    @product.vjp
    def product_vjp(
        primals: tuple[mx.array, ...],
        cotangents: tuple[mx.array, ...],
        outputs: tuple[mx.array, ...],
    ) -> tuple[mx.array, ...]:
        (x, a, b, m), cotangent = primals, cotangents[0]
        low, size = outputs[1:3]
        y = outputs[3 if len(outputs) > 3 else 0]
        each = _rows(cotangent * y)
        d_m = (mx.ones((1, each.shape[0])) @ each)[0] / m
        return *_back(stored, x, a, b, low, cotangent * size, scale, drop), d_m

    result: Any = product(x, layer.lora_a, layer.lora_b, layer.m)
    found: mx.array = result[0]
    return found


def _back(
    stored: Stored,
    x: mx.array,
    a: mx.array,
    b: mx.array,
    low: mx.array,
    cotangent: mx.array,
    scale: float,
    drop: Drop | None,
) -> tuple[mx.array, mx.array, mx.array]:
    """The gradients of `x`, `a` and `b` for that of `x @ W.T + low @ b`."""
    d_low = (cotangent @ b.T) * scale
    d_b = _rows(low).T @ _rows(cotangent)
    d_x = cotangent @ stored.dense(cotangent.dtype)
    if drop is None:
        return mx.addmm(d_x, d_low, a.T), _rows(x).T @ _rows(d_low), d_b
    mask = drop.mask(x.shape)
    d_a = _rows(drop.of(x, mask)).T @ _rows(d_low)
    return d_x + drop.of(d_low @ a.T, mask), d_a, d_b


def _dropped(x: mx.array, drop: Drop | None) -> mx.array:
    return x if drop is None else drop.of(x, drop.mask(x.shape))


def _rows(x: mx.array) -> mx.array:
    return x.reshape(-1, x.shape[-1])
