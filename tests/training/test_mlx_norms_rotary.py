"""RMS norm and rotary embedding in one piece each: the values and gradients of MLX's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from oodatcaa.training.mlx import norms, rotary, vector
from oodatcaa.training.mlx.cpu import on_cpu

pytestmark = pytest.mark.skipif(not on_cpu(), reason="the measures are for MLX's CPU device")
Function = Callable[..., mx.array]


@pytest.fixture(autouse=True)
def routed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oodatcaa.training.mlx.vector.FEW", 1)
    monkeypatch.setattr(mx.fast, "rms_norm", mx.fast.rms_norm)
    monkeypatch.setattr(mx.fast, "rope", mx.fast.rope)
    norms.route()
    rotary.route()


def random(*shape: int, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed + sum(shape)))


def close(ours: mx.array, theirs: mx.array) -> bool:
    scale = float(mx.abs(theirs).max().item().real)
    return bool(mx.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * max(scale, 1e-30)).item())


def agree(function: Function, *arrays: mx.array) -> None:
    """Inside of `at_once()` as outside of it, where MLX's own runs; with and without a trace."""
    weight = random(*function(*arrays).shape, seed=5)

    def summed(*given: mx.array) -> mx.array:
        return (function(*given) * weight).sum()

    wanted = [function(*arrays), *mx.grad(summed, list(range(len(arrays))))(*arrays)]
    mx.eval(wanted)
    with vector.at_once():
        found = [function(*arrays), *mx.grad(summed, list(range(len(arrays))))(*arrays)]
        mx.eval(found)
    with vector.at_once(traced=False):
        alone = function(*arrays)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        assert close(ours, theirs)
    assert mx.array_equal(alone, found[0])


@pytest.mark.parametrize("shape", [(2, 7, 48), (3, 2, 5, 16), (1, 1, 8), (4, 6), (2, 700, 128)])
def test_rms_norm(shape: tuple[int, ...]) -> None:
    agree(lambda x, w: mx.fast.rms_norm(x, w, 1e-5), 3 * random(*shape), random(shape[-1]))


def test_rms_norm_of_rows_that_are_not_in_order() -> None:
    agree(
        lambda x, w: mx.fast.rms_norm(x.swapaxes(0, 1), 1.0 + w, 1e-6), random(3, 4, 8), random(8)
    )


def test_rms_norm_of_zeros_and_of_numbers_that_are_none() -> None:
    weight = mx.ones(4)
    with vector.at_once():
        assert not mx.fast.rms_norm(mx.zeros((2, 4)), weight, 1e-5).any().item()
        bad = mx.fast.rms_norm(mx.array([[1.0, float("nan"), 0, 0], [1, 1, 1, 1]]), weight, 1e-5)
    assert mx.isnan(bad).tolist() == [[True] * 4, [False] * 4]


def test_turning_back_is_the_transpose_of_turning() -> None:
    """To the last digits that float32 has, also where angles have lost theirs."""
    x = random(1, 1, 5000, 32)

    def turned(x: mx.array) -> mx.array:
        return mx.fast.rope(x, 32, traditional=False, base=5e5, scale=1.0, offset=0)

    with vector.at_once():
        _, (back,) = mx.vjp(turned, [x], [turned(x)])
    assert mx.abs(back - x).max().item() < 1e-5  # type: ignore[operator]


@pytest.mark.parametrize("half", [True, False])
def test_what_is_left_to_mlx(half: bool) -> None:
    """Half precision, and norms without a weight."""
    x = random(2, 5, 16).astype(mx.bfloat16 if half else mx.float32)
    weight = mx.ones(16, mx.bfloat16) if half else None
    wanted = mx.fast.rms_norm(x, weight, 1e-5)
    turned = mx.fast.rope(x, 16, traditional=True, base=1e4, scale=1.0, offset=0)
    with vector.at_once():
        found = mx.fast.rms_norm(x, weight, eps=1e-5)
        assert found.dtype == x.dtype
        assert mx.array_equal(found, wanted)
        other = mx.fast.rope(x, 16, traditional=True, base=1e4, scale=1.0, offset=0)
        assert mx.array_equal(other, turned)


@pytest.mark.parametrize(
    "how",
    [
        {"offset": mx.array(3)},
        {"freqs": mx.array([1, 2, 3, 4, 5, 6, 7, 8], mx.bfloat16), "base": None},
        {"traditional": True},
        {"stream": mx.cpu},
    ],
    ids=lambda how: next(iter(how)),
)
def test_rotations_that_are_left_to_mlx(how: dict[str, Any]) -> None:
    options = {"traditional": False, "base": 1e4, "scale": 1.0, "offset": 0, **how}
    x = random(1, 2, 5, 16)
    wanted = mx.fast.rope(x, 16, **options)
    with vector.at_once():
        assert mx.array_equal(mx.fast.rope(x, 16, **options), wanted)


@pytest.mark.parametrize("offset", [0, 11])
@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("dims", [16, 8])
@pytest.mark.parametrize("own", [False, True], ids=["base", "frequencies"])
def test_rope(own: bool, dims: int, scale: float, offset: int) -> None:
    freqs = mx.abs(random(dims // 2)) * 50 + 1 if own else None

    def turned(x: mx.array) -> mx.array:
        # As models have it: heads are swapped in front of the positions.
        return mx.fast.rope(
            x.swapaxes(1, 2), dims, traditional=False, base=None if own else 5e5, scale=scale,
            offset=offset, freqs=freqs,
        )  # fmt: skip

    agree(turned, random(2, 9, 3, 16))


def test_rope_far_from_the_start() -> None:
    """Angles of thousands of turns have few digits left in float32, here as in MLX."""
    x = random(1, 2, 4096, 32)
    with vector.at_once():
        found = np.array(mx.fast.rope(x, 32, traditional=False, base=1e4, scale=1.0, offset=0))
    angles = np.arange(4096)[:, None] * 1e4 ** (-np.arange(16) / 16)
    first, second = np.split(np.array(x).astype(np.float64), 2, axis=-1)
    wanted = np.concatenate(
        [
            first * np.cos(angles) - second * np.sin(angles),
            second * np.cos(angles) + first * np.sin(angles),
        ],
        axis=-1,
    )
    assert np.abs(found - wanted).max() < 2e-3


def test_frequencies_that_are_traced_have_no_gradient() -> None:
    """mlx-lm hands the whole model to a transformation, private arrays too."""

    def loss(values: dict[str, mx.array]) -> mx.array:
        x = values["x"]
        with vector.at_once():
            return mx.fast.rope(
                x, 8, traditional=False, base=None, scale=1.0, offset=0, freqs=values["freqs"]
            ).sum()

    values: dict[str, Any] = {"x": random(1, 1, 5, 8), "freqs": mx.array([1.0, 2, 3, 4])}
    gradient = mx.grad(loss)(values)
    assert gradient["x"].any().item()
    assert not gradient["freqs"].any().item()


@pytest.mark.parametrize("how", [{"base": None}, {"base": 1e4, "freqs": mx.ones(8)}])
def test_what_mlx_refuses_is_refused(how: dict[str, Any]) -> None:
    with vector.at_once(), pytest.raises(ValueError, match="base"):
        mx.eval(
            mx.fast.rope(random(1, 2, 5, 16), 16, traditional=False, scale=1.0, offset=0, **how)
        )
