"""Random models of a real shape, written shard by shard: a few layers' memory, whatever the size.

A model is an mlx-lm folder with the tests' small tokenizer. Quantised weights are random packed
integers with scales that give the usual variance; nothing is ever held or quantised as a whole.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from tiny_model import write_tokenizer

Tensors = dict[str, Any]


def config(
    kind: str,
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    wide: int,
    vocabulary: int,
    *,
    tied: bool,
    head_dim: int | None = None,
    bits: int | None = 4,
) -> dict[str, Any]:
    """A config.json for `qwen2`, `llama` or `gemma`; `bits=None` stores float16."""
    made = {
        "architectures": [
            {"qwen2": "Qwen2", "llama": "Llama", "gemma": "Gemma"}[kind] + "ForCausalLM"
        ],
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": wide,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim or hidden // heads,
        "rms_norm_eps": 1e-6,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32768,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "pad_token_id": 0,
    }
    if bits is not None:
        made["quantization"] = {"group_size": 64, "bits": bits}
    return made


class _Maker:
    def __init__(self, config: dict[str, Any], seed: int, floats: Any) -> None:
        self.config, self.floats = config, floats
        self.random = np.random.default_rng(seed)
        quantization = config.get("quantization") or {}
        self.bits, self.group = quantization.get("bits"), quantization.get("group_size", 64)

    def linear(self, name: str, rows: int, columns: int, *, bias: bool = False) -> Tensors:
        spread = columns**-0.5
        if self.bits:
            words = self.random.integers(0, 2**32, (rows, columns * self.bits // 32), np.uint32)
            levels = 2**self.bits - 1
            scale = spread / (levels / 12**0.5)
            scales = np.full((rows, columns // self.group), scale, self.floats)
            made = {
                f"{name}.weight": words,
                f"{name}.scales": scales,
                f"{name}.biases": (scales * self.floats(-levels / 2)).astype(self.floats),
            }
        else:
            values = self.random.standard_normal((rows, columns), np.float32) * spread
            made = {f"{name}.weight": values.astype(self.floats)}
        if bias:
            made[f"{name}.bias"] = np.zeros(rows, self.floats)
        return made

    def shards(self) -> Iterator[Tensors]:
        c = self.config
        hidden, wide = c["hidden_size"], c["intermediate_size"]
        queries = c["num_attention_heads"] * c["head_dim"]
        keys = c["num_key_value_heads"] * c["head_dim"]
        biased = c["model_type"] == "qwen2"
        yield self.linear("model.embed_tokens", c["vocab_size"], hidden)
        for layer in range(c["num_hidden_layers"]):
            block = f"model.layers.{layer}"
            yield {
                **self.linear(f"{block}.self_attn.q_proj", queries, hidden, bias=biased),
                **self.linear(f"{block}.self_attn.k_proj", keys, hidden, bias=biased),
                **self.linear(f"{block}.self_attn.v_proj", keys, hidden, bias=biased),
                **self.linear(f"{block}.self_attn.o_proj", hidden, queries),
                **self.linear(f"{block}.mlp.gate_proj", wide, hidden),
                **self.linear(f"{block}.mlp.up_proj", wide, hidden),
                **self.linear(f"{block}.mlp.down_proj", hidden, wide),
                f"{block}.input_layernorm.weight": np.ones(hidden, self.floats),
                f"{block}.post_attention_layernorm.weight": np.ones(hidden, self.floats),
            }
        last = {"model.norm.weight": np.ones(hidden, self.floats)}
        if not c["tie_word_embeddings"]:
            last |= self.linear("lm_head", c["vocab_size"], hidden)
        yield last


def write_model(
    folder: Path, config: dict[str, Any], *, seed: int = 0, floats: Any = np.float16
) -> Path:
    """Write the model into `folder`; its absolute path. One shard at a time is in memory. `floats`:
    what is not quantised is stored as."""
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, str] = {}
    total = 0
    count = config["num_hidden_layers"] + 2
    for number, tensors in enumerate(_Maker(config, seed, floats).shards(), 1):
        name = f"model-{number:05d}-of-{count:05d}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "mlx"})
        index |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    described = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(described), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    write_tokenizer(folder)
    return folder.resolve()
