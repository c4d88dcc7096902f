"""LoRA and DoRA layers in one piece equal mlx-lm's own, and keep less."""

from __future__ import annotations

import gc
import shutil
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear

from oodatcaa.training.mlx import randomness, vector
from oodatcaa.training.mlx.adapted import prepare
from oodatcaa.training.mlx.cpu import on_cpu, speed_up
from oodatcaa.training.mlx.randomness import Drop, drop_of, route, seeded

pytestmark = pytest.mark.skipif(not on_cpu(), reason="layers evaluate so on the CPU alone")

INPUTS, OUTPUTS = 64, 96


class _Chain(nn.Module):  # type: ignore[misc]
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = list(layers)

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers:
            x = layer(x)
        return x


def made(
    kind: Any, sizes: tuple[int, ...], *, bits: int | None, bias: bool, dropout: float = 0.0
) -> _Chain:
    """Layers with an adapter that already changes what they give."""
    mx.random.seed(3)
    plain = _Chain(*(nn.Linear(a, b, bias=bias) for a, b in pairwise(sizes)))
    if bias:
        for layer in plain.layers:
            layer.bias = 100 * mx.random.normal(layer.bias.shape)
    if bits is not None:
        nn.quantize(plain, group_size=32, bits=bits)
    plain.freeze()
    speed_up(plain)
    found = _Chain(
        *(kind.from_base(layer, r=4, scale=2.0, dropout=dropout) for layer in plain.layers)
    )
    for layer in found.layers:
        layer.linear.freeze()
        layer.lora_b = mx.random.normal(layer.lora_b.shape)
        if "m" in layer:
            layer.m = layer.m * (1 + 0.2 * mx.random.normal(layer.m.shape))
    prepare(found)
    found.train()
    mx.eval(found.parameters())
    return found


def step(network: nn.Module, x: mx.array, *, at_once: bool) -> dict[str, mx.array]:
    """What it gives, and all gradients, that of `x` too."""
    route()

    def loss(trained: Any, x: mx.array) -> tuple[mx.array, mx.array]:
        network.update(trained)
        with seeded(11), vector.at_once() if at_once else nullcontext():
            y = network(x)
        weight = mx.random.normal(y.shape, key=mx.random.key(5))
        return (weight * y).sum(), y

    trained = network.trainable_parameters()
    (_, y), (gradients, d_x) = mx.value_and_grad(loss, argnums=(0, 1))(trained, x)
    found = {"y": y, "x": d_x, **dict(tree_flatten(gradients))}
    mx.eval(found)
    network.update(trained)
    return found


def largest(array: mx.array) -> float:
    return float(mx.abs(array).max().item().real)


def assert_close(ours: dict[str, mx.array], theirs: dict[str, mx.array], most: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert largest(array) > 0
        assert largest(ours[name] - array) <= most * largest(array), name


@pytest.mark.parametrize("pieces", [False, True], ids=["whole", "in pieces"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("bits", [None, 4, 8], ids=["float", "4 bit", "8 bit"])
@pytest.mark.parametrize("kind", [LoRALinear, DoRALinear])
def test_a_layer_and_its_gradients_are_those_of_mlx_lm(
    kind: Any,
    bits: int | None,
    bias: bool,
    dropout: float,
    pieces: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if pieces:
        monkeypatch.setattr("oodatcaa.training.mlx.stored.PIECE_BYTES", 5 * 4 * INPUTS)
    network = made(kind, (INPUTS, OUTPUTS), bits=bits, bias=bias, dropout=dropout)
    x = mx.random.normal((2, 7, INPUTS), key=mx.random.key(1))
    with monkeypatch.context() as only:
        for name in ("_stock_lora", "_stock_dora"):
            only.delattr(f"oodatcaa.training.mlx.adapted.{name}")  # it is not called
        ours = step(network, x, at_once=True)
    stock = step(network, x, at_once=False)
    assert {"layers.0.lora_a", "layers.0.lora_b"} <= stock.keys()
    assert ("layers.0.m" in stock) is (kind is DoRALinear)
    assert_close(ours, stock, 1e-4)


def test_a_magnitude_of_zero_has_its_gradient() -> None:
    network = made(DoRALinear, (INPUTS, OUTPUTS), bits=4, bias=False)
    layer = network.layers[0]
    layer.m = mx.where(mx.arange(OUTPUTS) == 5, 0.0, layer.m)
    x = mx.random.normal((2, 7, INPUTS), key=mx.random.key(1))
    ours, stock = (step(network, x, at_once=at_once) for at_once in (True, False))
    assert largest(stock["layers.0.m"][5]) > 0.1
    assert_close(ours, stock, 1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("bits", [None, 4], ids=["float", "4 bit"])
@pytest.mark.parametrize("kind", [LoRALinear, DoRALinear])
def test_only_what_layers_give_is_kept(kind: Any, bits: int | None, dropout: float) -> None:
    count, width, rows = 12, 256, 512
    network = made(kind, (width,) * (count + 1), bits=bits, bias=False, dropout=dropout)
    x = mx.random.normal((1, rows, width), key=mx.random.key(1))
    kept = []
    gc.collect()  # what other tests left would go in the middle of it

    def loss(trained: Any) -> mx.array:
        network.update(trained)
        before = mx.get_active_memory()
        with seeded(11), vector.at_once():
            y = network(x)
        kept.append(mx.get_active_memory() - before)
        return y.sum()

    mx.eval(mx.grad(loss)(network.trainable_parameters()))
    outputs = count * rows * width * 4
    assert outputs <= kept[0] < 1.15 * outputs


@pytest.mark.parametrize("at_once", [False, True])
def test_a_mask_is_the_same_each_time_and_keeps_what_it_should(at_once: bool) -> None:
    layer = nn.Dropout(0.25)
    shape = (200, 500)

    def drawn(seed: int) -> list[Drop]:
        mx.random.seed(seed)
        with randomness.step(at_once=at_once):
            return [drop for _ in range(2) if (drop := drop_of(layer)) is not None]

    one, other = drawn(2)
    mask = one.mask(shape)
    assert mx.array_equal(mask, one.mask(shape))
    assert not mx.array_equal(mask, other.mask(shape))
    assert mx.array_equal(mask, drawn(2)[0].mask(shape))
    assert not mx.array_equal(mask, drawn(3)[0].mask(shape))
    # Five standard deviations of the mean of so many.
    assert mask.mean().item() == pytest.approx(0.75, abs=5 * (0.25 * 0.75 / 100_000) ** 0.5)
    x = mx.random.normal(shape, key=mx.random.key(1))
    assert mx.allclose(one.of(x, mask), mx.where(mask, x / 0.75, 0.0))
    assert one.of(x.astype(mx.bfloat16), mask).dtype == mx.bfloat16
    layer.eval()
    assert drawn(2) == []


@pytest.mark.skipif(shutil.which("g++") is None, reason="MLX compiles for the CPU with g++")
def test_a_compiled_step_draws_anew_each_time() -> None:
    layer = nn.Dropout(0.5)
    route()

    def once(x: mx.array) -> mx.array:
        with randomness.step(at_once=False):
            y: mx.array = layer(x)
            return y

    mx.enable_compile()  # another test's model may have switched it off
    try:
        state: Any = mx.random.state
        compiled = mx.compile(once, inputs=state, outputs=state)
        one, other = compiled(mx.ones((100,))), compiled(mx.ones((100,)))
        mx.eval(one, other)
    finally:
        mx.disable_compile()
    assert not mx.array_equal(one, other)
