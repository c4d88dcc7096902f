"""The CPU's way to dequantise gives MLX's values to the last bit."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from oodatcaa.training.mlx.dense import dequantise, dequantised


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
@pytest.mark.parametrize("shape", [(7, 256), (3, 5, 128), (1, 128)])
def test_it_gives_what_mlx_gives(
    bits: int, group: int, dtype: mx.Dtype, shape: tuple[int, ...]
) -> None:
    weight = mx.random.normal(shape, key=mx.random.key(bits)).astype(dtype)
    parts = mx.quantize(weight, group, bits)
    how: dict[str, Any] = {"group_size": group, "bits": bits, "mode": "affine"}
    ours, theirs = dequantise(*parts, **how), mx.dequantize(*parts, **how)
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape == shape
    assert mx.array_equal(ours, theirs)


def test_every_packed_byte_becomes_its_weights_in_order() -> None:
    packed = mx.arange(256, dtype=mx.uint32).astype(mx.uint8)
    words = mx.view(mx.tile(packed[:, None], (1, 64)).reshape(1, -1), mx.uint32)
    for bits in (2, 4, 8):
        groups = words.shape[1] * 32 // bits // 64
        ones, none = mx.ones((1, groups)), mx.zeros((1, groups))
        how: dict[str, Any] = {"group_size": 64, "bits": bits, "mode": "affine"}
        found = dequantise(words, ones, none, **how)
        expected = [
            float(byte >> (bits * place) & (1 << bits) - 1)
            for byte in range(256)
            for _ in range(64)
            for place in range(8 // bits)
        ]
        assert found.reshape(-1).tolist() == expected


def test_a_mode_without_biases_is_left_to_mlx() -> None:
    weight = mx.random.normal((4, 64), key=mx.random.key(0))
    packed, scales = mx.quantize(weight, 32, 4, "mxfp4")[:2]
    how: dict[str, Any] = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    ours = dequantise(packed, scales, None, **how)
    assert mx.array_equal(ours, mx.dequantize(packed, scales, None, **how))


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_matrix_that_is_kept_is_made_in_pieces_of_rows(
    bits: int, by_columns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oodatcaa.training.mlx.dense.PIECE_BYTES", 7 * 128 * 4)
    quantised: Any = mx.quantize(mx.random.normal((50, 128)), group_size=64, bits=bits)
    how: dict[str, Any] = {"group_size": 64, "bits": bits, "mode": "affine"}
    found = dequantised(*quantised, **how, by_columns=by_columns)
    assert found.dtype == mx.float32
    assert mx.array_equal(found, dequantise(*quantised, **how)).item()
    assert np.array(found, copy=False).flags.f_contiguous == by_columns


@pytest.mark.parametrize("by_columns", [False, True])
def test_making_a_matrix_that_is_kept_takes_little_more_than_it_is(by_columns: bool) -> None:
    quantised: Any = mx.quantize(mx.random.normal((20_000, 512)), group_size=64, bits=4)
    mx.eval(quantised)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    found = dequantised(*quantised, group_size=64, bits=4, mode="affine", by_columns=by_columns)
    assert mx.get_peak_memory() - before < 1.3 * found.nbytes
