"""What layers a base model has, from config.json and tensor headers; nothing is loaded."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oodatcaa.errors import OodatcaaError, RefusedError
from oodatcaa.pool.tensors import read_tensors

BLOCK = re.compile(r"(?:^|\.)(?:layers|blocks|h)\.(\d+)\.(.+)$")
NOT_TEXT = ("vision_config", "audio_config", "vision_tower", "speech_config")
GENERATES = ("CausalLM", "LMHeadModel", "LanguageModel")


@dataclass(frozen=True)
class BaseShape:
    """Linear and embedding layers by name: (outputs, inputs), with experts in front where the
    layer has them; `blocks` is the number of transformer blocks."""

    layers: dict[str, tuple[int, ...]]
    blocks: int

    def find(self, name: str) -> tuple[int, ...] | None:
        """mlx-lm takes a wrapper's prefix off some models' names when it loads them."""
        bare = name.removeprefix("language_model.")
        for candidate in (name, bare, f"language_model.{bare}", f"model.language_model.{bare}"):
            if candidate in self.layers:
                return self.layers[candidate]
        return None

    def stacked_when_loaded(self, name: str) -> bool:
        """Experts that are stored one by one become one layer when mlx-lm loads the model."""
        block, _, rest = name.partition(".switch_mlp.")
        return bool(rest) and any(layer.startswith(f"{block}.experts.") for layer in self.layers)


def read_base(folder: Path) -> BaseShape:
    """Raises RefusedError `pool.not_text` (no text generation model) and OodatcaaError
    `model.unreadable`, with every problem."""
    config = _config(folder)
    if why := not_text(config):
        raise RefusedError(
            "pool.not_text",
            f"{folder.name} is no text generation model: {why}",
            hint="the pool serves text generation models only; use a causal language model",
        )
    layers: dict[str, tuple[int, ...]] = {}
    problems: list[str] = []
    shards = sorted(folder.glob("model*.safetensors"))
    for shard in shards:
        tensors, wrong = read_tensors(shard)
        problems += wrong
        for name, tensor in tensors.items():
            layer, _, leaf = name.rpartition(".")
            if leaf == "weight" and len(tensor.shape) in (2, 3):
                inputs = tensor.shape[-1]
                if tensor.dtype == "U32":
                    inputs = inputs * 32 // _bits(config, layer)
                layers[layer] = (*tensor.shape[:-1], inputs)
    if problems or not shards:
        problems = problems or ["no model*.safetensors"]
        raise _unreadable(folder, problems)
    blocks = {int(m[1]) for m in map(BLOCK.search, layers) if m}
    return BaseShape(layers, max(blocks, default=-1) + 1)


def not_text(config: dict[str, Any]) -> str:
    """Why this is no text generation model, from its own config; empty when it is one."""
    for key in NOT_TEXT:
        if config.get(key):
            return f"config.json has a {key}"
    names = [str(name) for name in config.get("architectures") or ()]
    if names and not any(word in name for name in names for word in GENERATES):
        return f"its architecture is {', '.join(names)}"
    return ""


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(folder, [f"config.json can not be read: {error}"]) from error
    if not isinstance(config, dict):
        raise _unreadable(folder, ["config.json holds no object"])
    return config


def _unreadable(folder: Path, problems: list[str]) -> OodatcaaError:
    return OodatcaaError(
        "model.unreadable",
        f"{folder} is not a complete mlx-lm model folder: {problems[0]}",
        hint="oodatcaa models fetch demo, or convert the model with mlx_lm.convert",
        details=problems,
    )


def _bits(config: dict[str, Any], layer: str) -> int:
    """Layers may have their own number of bits in the quantization table."""
    table = config.get("quantization") or config.get("quantization_config") or {}
    own = table.get(layer)
    bits = own.get("bits") if isinstance(own, dict) else table.get("bits")
    return int(bits or 4)
