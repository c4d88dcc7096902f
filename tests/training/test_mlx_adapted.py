"""LoRA and DoRA layers in one piece equal mlx-lm's own, and keep less."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.dora import DoRALinear
from mlx_lm.tuner.lora import LoRALinear

from oodatcaa.training.mlx import vector
from oodatcaa.training.mlx.adapted import prepare
from oodatcaa.training.mlx.cpu import on_cpu, speed_up
from oodatcaa.training.mlx.randomness import Drop

pytestmark = pytest.mark.skipif(not on_cpu(), reason="layers evaluate so on the CPU alone")

INPUTS, OUTPUTS = 64, 96


class _SameMask(nn.Module):  # type: ignore[misc]
    """Dropout in MLX's graph, by the mask that the layer in one piece draws."""

    def __init__(self, keep: float) -> None:
        super().__init__()
        self._p_1 = keep

    def __call__(self, x: mx.array) -> mx.array:
        if not self.training:
            return x
        drop = Drop(self._p_1)
        return drop.of(x, drop.mask(x.shape))


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
        layer.dropout = _SameMask(1 - dropout)
    prepare(found)
    found.train()
    mx.eval(found.parameters())
    return found


def step(network: nn.Module, x: mx.array, *, at_once: bool) -> dict[str, mx.array]:
    """What it gives, and all gradients, that of `x` too."""
    mx.random.seed(11)

    def loss(trained: Any, x: mx.array) -> tuple[mx.array, mx.array]:
        network.update(trained)
        if at_once:
            with vector.at_once():
                y = network(x)
        else:
            y = network(x)
        weight = mx.random.normal(y.shape, key=mx.random.key(5))
        return (weight * y).sum(), y

    trained = network.trainable_parameters()
    (_, y), (gradients, d_x) = mx.value_and_grad(loss, argnums=(0, 1))(trained, x)
    found = {"y": y, "x": d_x, **dict(tree_flatten(gradients))}
    mx.eval(found)
    network.update(trained)
    return found


def assert_close(ours: dict[str, mx.array], theirs: dict[str, mx.array], most: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        largest = float(mx.abs(array).max().item())  # type: ignore[arg-type]
        assert largest > 0
        assert float(mx.abs(ours[name] - array).max().item()) <= most * largest, name  # type: ignore[arg-type]


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
    ours, stock = (step(network, x, at_once=at_once) for at_once in (True, False))
    assert {"layers.0.lora_a", "layers.0.lora_b"} <= stock.keys()
    assert ("layers.0.m" in stock) is (kind is DoRALinear)
    assert_close(ours, stock, 1e-4)


def test_a_magnitude_of_zero_has_its_gradient() -> None:
    network = made(DoRALinear, (INPUTS, OUTPUTS), bits=4, bias=False)
    layer = network.layers[0]
    layer.m = mx.where(mx.arange(OUTPUTS) == 5, 0.0, layer.m)
    x = mx.random.normal((2, 7, INPUTS), key=mx.random.key(1))
    ours, stock = (step(network, x, at_once=at_once) for at_once in (True, False))
    assert float(mx.abs(stock["layers.0.m"][5]).item()) > 0.1  # type: ignore[arg-type]
    assert_close(ours, stock, 1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("bits", [None, 4], ids=["float", "4 bit"])
@pytest.mark.parametrize("kind", [LoRALinear, DoRALinear])
def test_only_what_layers_give_is_kept(kind: Any, bits: int | None, dropout: float) -> None:
    count, width, rows = 12, 256, 512
    network = made(kind, (width,) * (count + 1), bits=bits, bias=False, dropout=dropout)
    x = mx.random.normal((1, rows, width), key=mx.random.key(1))
    kept = []

    def loss(trained: Any) -> mx.array:
        network.update(trained)
        before = mx.get_active_memory()
        with vector.at_once():
            y = network(x)
        kept.append(mx.get_active_memory() - before)
        return y.sum()

    mx.eval(mx.grad(loss)(network.trainable_parameters()))
    outputs = count * rows * width * 4
    assert outputs <= kept[0] < 1.15 * outputs


def test_a_mask_is_the_same_each_time_and_keeps_what_it_should() -> None:
    mx.random.seed(2)
    one, other = Drop(0.75), Drop(0.75)
    mask = one.mask((200, 500))
    assert mx.array_equal(mask, one.mask((200, 500)))
    assert not mx.array_equal(mask, other.mask((200, 500)))
    mx.random.seed(2)
    assert mx.array_equal(mask, Drop(0.75).mask((200, 500)))
    # Five standard deviations of the mean of so many.
    assert mask.mean().item() == pytest.approx(0.75, abs=5 * (0.25 * 0.75 / 100_000) ** 0.5)
    x = mx.random.normal(mask.shape, key=mx.random.key(1))
    kept = one.of(x, mask)
    assert mx.allclose(kept, mx.where(mask, x / 0.75, 0.0))
