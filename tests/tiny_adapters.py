"""Random adapters for the tiny model, written without mlx, in mlx-lm's dialect and in PEFT's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tiny_model import HEADS, HIDDEN, INTERMEDIATE, KV_HEADS

KEYS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
SHAPES = {  # (inputs, outputs)
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN // HEADS * KV_HEADS),
    "self_attn.v_proj": (HIDDEN, HIDDEN // HEADS * KV_HEADS),
    "mlp.down_proj": (INTERMEDIATE, HIDDEN),
}


def make_adapter(
    folder: Path,
    *,
    seed: int = 0,
    rank: int = 4,
    blocks: Sequence[int] = (1, 2),
    keys: Sequence[str] = KEYS,
    scale: float = 8.0,
    model: str = "tiny",
    dora: bool = False,
) -> Path:
    """mlx-lm's dialect. Different seeds answer differently from each other and from the base."""
    tensors = _tensors(seed, rank, blocks, keys)
    if dora:
        wide = {n.removesuffix("lora_b"): t.shape[1] for n, t in tensors.items() if n[-1] == "b"}
        tensors |= {f"{n}m": np.linspace(0.5, 1.5, w, dtype=np.float32) for n, w in wide.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapters.safetensors")
    config: dict[str, Any] = {
        "model": model,
        "fine_tune_type": "dora" if dora else "lora",
        "num_layers": len(blocks),
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0, "keys": list(keys)},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def make_peft_adapter(
    folder: Path,
    *,
    seed: int = 0,
    rank: int = 4,
    blocks: Sequence[int] = (1, 2),
    scale: float = 8.0,
) -> Path:
    """The same adapter as `make_adapter` makes, as PEFT saves it."""
    tensors = {}
    for name, value in _tensors(seed, rank, blocks, KEYS).items():
        layer, _, leaf = name.rpartition(".")
        peft = {"lora_a": "lora_A", "lora_b": "lora_B"}[leaf]
        tensors[f"base_model.model.{layer}.{peft}.weight"] = np.ascontiguousarray(value.T)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": rank,
        "lora_alpha": scale * rank,
        "target_modules": [key.rpartition(".")[2] for key in KEYS],
        "layers_to_transform": list(blocks),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def _tensors(
    seed: int, rank: int, blocks: Sequence[int], keys: Sequence[str]
) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    made = {}
    for block in blocks:
        for key in keys:
            inputs, outputs = SHAPES[key]
            name = f"model.layers.{block}.{key}"
            a = random.standard_normal((inputs, rank)) * inputs**-0.5
            made[f"{name}.lora_a"] = a.astype(np.float32)
            made[f"{name}.lora_b"] = random.standard_normal((rank, outputs)).astype(np.float32)
    return made
