"""Gelu in one piece: the values and gradients of MLX's own, and nothing kept but the input."""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.nn.layers import activations

from oodatcaa.training.mlx import gelu, vector
from oodatcaa.training.mlx.cpu import on_cpu

pytestmark = pytest.mark.skipif(not on_cpu(), reason="the measures are for MLX's CPU device")


@pytest.fixture(autouse=True)
def routed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oodatcaa.training.mlx.vector.FEW", 1)
    for home in (nn, activations):
        for name in ("gelu", "gelu_approx"):
            monkeypatch.setattr(home, name, getattr(home, name))
    gelu.route()


def curve() -> mx.array:
    return mx.array(np.linspace(-12, 12, 7 * 997, dtype=np.float32).reshape(7, 997))


def apart(ours: mx.array, theirs: mx.array) -> float:
    return float(mx.abs(ours - theirs).max().item().real)


@pytest.mark.parametrize("piece", [None, 3000], ids=["whole", "some rows"])
@pytest.mark.parametrize("name", ["gelu", "gelu_approx"])
@pytest.mark.parametrize("traced", [True, False])
def test_values_are_those_of_mlx(
    name: str, traced: bool, piece: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if piece is not None:
        monkeypatch.setattr(vector, "PIECE", piece)
    x = curve()
    stock = getattr(nn, name)(x)
    with vector.at_once(traced=traced):
        ours = getattr(nn, name)(x)
    assert ours.dtype == mx.float32
    assert apart(ours, stock) < 3e-6


@pytest.mark.parametrize("name", ["gelu", "gelu_approx"])
def test_gradients_are_those_of_mlx(name: str) -> None:
    x = curve()
    weight = mx.random.normal(x.shape, key=mx.random.key(1))

    def loss(x: mx.array) -> Any:
        return (getattr(nn, name)(x) * weight).sum()

    stock = mx.grad(loss)(x)
    with vector.at_once():
        ours = mx.grad(loss)(x)
        mx.eval(ours)
    assert apart(ours, stock) < 1e-5


def test_it_is_the_normal_distribution() -> None:
    x = curve()
    with vector.at_once():
        ours = np.array(nn.gelu(x), np.float64)
    wide = np.array(x, np.float64)
    exact = wide * np.vectorize(lambda z: math.erfc(-z / math.sqrt(2)) / 2)(wide)
    assert np.abs(ours - exact).max() < 2e-6


@pytest.mark.parametrize(("approx", "name"), [("none", "gelu"), ("precise", "gelu_approx")])
def test_the_layer_takes_the_same_way(approx: Any, name: str) -> None:
    x = curve()
    with vector.at_once():
        assert mx.array_equal(nn.GELU(approx)(x), getattr(nn, name)(x))


@pytest.mark.parametrize("name", ["gelu", "gelu_approx"])
def test_a_trace_keeps_the_input_and_the_result(name: str) -> None:
    x = mx.random.normal((64, 8192), key=mx.random.key(2))
    mx.eval(x)

    def peak(function: Any) -> int:
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()

        def loss(x: mx.array) -> Any:
            y = function(x)
            mx.eval(y)
            return y.sum()

        mx.eval(mx.grad(loss)(x))
        return mx.get_peak_memory() - before

    with vector.at_once():
        # Where nothing of what is between them is kept; MLX's own are at 5 and at 8.
        assert peak(getattr(nn, name)) <= 2.1 * x.nbytes


@pytest.mark.parametrize("name", ["gelu", "gelu_approx"])
@pytest.mark.parametrize(
    "x",
    [curve().T, curve()[None].swapaxes(1, 2), curve()[:, 100:300]],
    ids=["columns", "of one row", "a part"],
)
def test_any_order_in_memory(x: mx.array, name: str) -> None:
    def loss(x: mx.array) -> Any:
        return mx.square(getattr(nn, name)(x)).sum()

    stock, slope = getattr(nn, name)(x), mx.grad(loss)(x)
    with vector.at_once():
        ours, found = getattr(nn, name)(x), mx.grad(loss)(x)
        mx.eval(ours, found)
    assert apart(ours, stock) < 3e-6
    assert apart(found, slope) < 3e-5


@pytest.mark.parametrize("name", ["gelu", "gelu_approx"])
def test_what_is_no_number_stays_none_and_far_values_go_through(name: str) -> None:
    x = mx.array([[math.nan, math.inf, 1e15, -1e15, 0.0, -0.0, 90.0, -90.0]])
    with vector.at_once():
        values = getattr(nn, name)(x)[0].tolist()
        slopes = mx.grad(lambda x: getattr(nn, name)(x).sum())(x)[0].tolist()
    assert math.isnan(values[0])
    assert math.isnan(slopes[0])
    assert values[1:] == [math.inf, pytest.approx(1e15), 0, 0, 0, 90, 0]
    assert slopes[2:] == [1, 0, 0.5, 0.5, 1, 0]


@pytest.mark.parametrize("x", [curve().astype(mx.bfloat16), mx.zeros((0, 4))])
def test_what_is_not_for_it_is_left_to_mlx(x: mx.array) -> None:
    for name in ("gelu", "gelu_approx"):
        stock = getattr(nn, name)(x)
        with vector.at_once():
            ours = getattr(nn, name)(x)
        assert ours.dtype == stock.dtype
        assert mx.array_equal(ours, stock)
