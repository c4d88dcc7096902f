"""The tiny model with LoRA layers that already change its output, and the CPU's measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import load
from mlx_lm.tuner.utils import linear_to_lora_layers

from oodatcaa.training.mlx.adapted import prepare
from oodatcaa.training.mlx.cpu import speed_up


def three_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a team of three. The tiny model's tensors would all be below the size from which leaving
    MLX's graph pays."""
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    monkeypatch.setattr("oodatcaa.training.mlx.vector.FEW", 1)


def adapted(folder: Path, layers: int, *, dropout: float = 0.0, dora: bool = False) -> Any:
    loaded: Any = load(str(folder))
    model = loaded[0]
    model.freeze()
    speed_up(model)
    mx.random.seed(7)
    options = {"rank": 4, "scale": 2.0, "dropout": dropout}
    linear_to_lora_layers(model, layers, options, use_dora=dora)
    prepare(model)
    for name, module in model.named_modules():
        if "lora_b" in module:
            module.lora_b = mx.random.normal(module.lora_b.shape, key=mx.random.key(len(name)))
    return model
