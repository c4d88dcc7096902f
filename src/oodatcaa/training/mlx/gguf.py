"""A quantised llama GGUF file becomes an mlx-lm model folder, weight for weight.

`mx.load` already gives Q4_1 and Q8_0 tensors in MLX's affine layout (packed weight, scales,
biases), so nothing is dequantised here: tensors are renamed, llama.cpp's row permutation of q and k
is undone, and tokenizer and configuration are rebuilt from the file's metadata.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from oodatcaa.domain.base import Record
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.files import write_atomic
from oodatcaa.training.serving import read_request, serve

GROUP_SIZE = 32
"""Block length of every GGUF quantisation that MLX reads without loss."""

_CONTROL_TOKEN = 3
"""llama.cpp's LLAMA_TOKEN_TYPE_CONTROL."""

_BLOCK_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}

Metadata = Mapping[str, Any]


class ConvertRequest(Record):
    """`source` is a .gguf file, `target` a folder that does not exist yet."""

    source: str
    target: str


class ConvertResult(Record):
    target: str
    tensors: int
    licence: str


def unpermute_rows(rows: mx.array, heads: int) -> mx.array:
    """Undo llama.cpp's `permute`: rotary pairs (2i, 2i+1) of each head go back to (i, i + d/2).

    Works on whole rows, so packed weights, scales and biases take the same treatment. Raises
    ValueError when the rows do not split into `heads` heads of even size.
    """
    if rows.shape[0] % (2 * heads):
        raise ValueError(f"{rows.shape[0]} rows do not split into {heads} heads of even size")
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def mlx_name(name: str) -> str:
    """`blk.3.attn_q.scales` -> `model.layers.3.self_attn.q_proj.scales`. KeyError if unknown."""
    stem, _, suffix = name.rpartition(".")
    if stem.startswith("blk."):
        _, layer, part = stem.split(".", 2)
        return f"model.layers.{layer}.{_BLOCK_NAMES[part]}.{suffix}"
    return f"{_TOP_NAMES[stem]}.{suffix}"


def convert_tensors(tensors: Mapping[str, mx.array], metadata: Metadata) -> dict[str, mx.array]:
    """All tensors under mlx-lm's names, q and k rows back in the reference order."""
    heads = {
        "self_attn.q_proj": _number(metadata, "llama.attention.head_count"),
        "self_attn.k_proj": _number(metadata, "llama.attention.head_count_kv"),
    }
    unknown = []
    converted = {}
    for name, tensor in tensors.items():
        if name == "rope_freqs.weight":
            continue  # derived from rope_theta by mlx-lm
        try:
            new = mlx_name(name)
        except (KeyError, ValueError):
            unknown.append(name)
            continue
        for part, count in heads.items():
            if f".{part}." in new:
                tensor = unpermute_rows(tensor, count)
        converted[new] = tensor
    if unknown:
        raise OodatcaaError(
            "model.gguf",
            f"the GGUF file holds {len(unknown)} tensors that a llama model does not have",
            hint="only llama-shaped GGUF files can be converted; use an mlx-lm folder instead",
            details=sorted(unknown),
        )
    return converted


def quantization(tensors: Mapping[str, mx.array]) -> dict[str, Any]:
    """mlx-lm's `quantization` entry: the common setting, and every layer that differs from it."""
    bits = {}
    for name, tensor in tensors.items():
        if name.endswith(".scales"):
            stem = name.removesuffix(".scales")
            columns = tensor.shape[-1] * GROUP_SIZE
            bits[stem] = tensors[f"{stem}.weight"].shape[-1] * 32 // columns
    common = max(set(bits.values()), key=list(bits.values()).count)
    entry: dict[str, Any] = {"group_size": GROUP_SIZE, "bits": common}
    for stem, width in bits.items():
        if width != common:
            entry[stem] = {"group_size": GROUP_SIZE, "bits": width}
    return entry


def build_config(tensors: Mapping[str, mx.array], metadata: Metadata) -> dict[str, Any]:
    hidden = _number(metadata, "llama.embedding_length")
    epsilon = float(metadata["llama.attention.layer_norm_rms_epsilon"].item())
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": _number(metadata, "llama.feed_forward_length"),
        "num_hidden_layers": _number(metadata, "llama.block_count"),
        "num_attention_heads": _number(metadata, "llama.attention.head_count"),
        "num_key_value_heads": _number(metadata, "llama.attention.head_count_kv"),
        "head_dim": _number(metadata, "llama.rope.dimension_count"),
        "max_position_embeddings": _number(metadata, "llama.context_length"),
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        # The file stores it as float32; the decimal that was meant has far fewer digits.
        "rms_norm_eps": float(f"{epsilon:.6g}"),
        "rope_theta": float(metadata["llama.rope.freq_base"].item()),
        "rope_traditional": False,
        "attention_bias": False,
        "mlp_bias": False,
        "hidden_act": "silu",
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        "bos_token_id": _number(metadata, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _number(metadata, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _number(metadata, "tokenizer.ggml.padding_token_id"),
        "quantization": quantization(tensors),
    }


def build_tokenizer(metadata: Metadata) -> Tokenizer:
    """Byte-level BPE with every digit on its own (llama.cpp's `smollm` pre-tokenizer)."""
    if (kind := metadata.get("tokenizer.ggml.pre")) != "smollm":
        raise OodatcaaError(
            "model.gguf",
            f"the GGUF file's tokenizer is of kind {kind!r}; only 'smollm' can be rebuilt",
            hint="use an mlx-lm folder or a hub name instead",
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ", 1)) for m in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"].tolist()
    special = [t for t, k in zip(tokens, kinds, strict=True) if k == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return tokenizer


def tokenizer_config(metadata: Metadata) -> dict[str, Any]:
    tokens = metadata["tokenizer.ggml.tokens"]

    def token(role: str) -> str:
        return str(tokens[_number(metadata, f"tokenizer.ggml.{role}_token_id")])

    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "pad_token": token("padding"),
        "unk_token": token("unknown"),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": _number(metadata, "llama.context_length"),
        "chat_template": metadata["tokenizer.chat_template"],
    }


def convert(source: Path, target: Path) -> ConvertResult:
    """Write the mlx-lm folder `target` from the GGUF file `source`.

    `target` must not exist; the caller renames it into place, so a crash leaves nothing half.
    Raises OodatcaaError `model.gguf` for a file that is not a llama-shaped GGUF.
    """
    try:
        loaded: Any = mx.load(str(source), return_metadata=True)
    except RuntimeError as error:
        raise OodatcaaError(
            "model.gguf",
            f"{source} is not a readable GGUF file: {error}",
            hint="fetch it again with `oodatcaa models fetch demo`",
        ) from error
    tensors, metadata = loaded
    if (architecture := metadata.get("general.architecture")) != "llama":
        raise OodatcaaError(
            "model.gguf",
            f"{source} holds a {architecture!r} model; only llama can be converted",
            hint="use an mlx-lm folder or a hub name instead",
        )
    weights = convert_tensors(tensors, metadata)
    config = build_config(weights, metadata)
    target.mkdir(parents=True)
    mx.save_safetensors(str(target / "model.safetensors"), weights, metadata={"format": "mlx"})
    build_tokenizer(metadata).save(str(target / "tokenizer.json"))
    generation = {k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, content in (
        ("tokenizer_config.json", tokenizer_config(metadata)),
        ("generation_config.json", generation),
        # Last: a folder with a config.json is a whole one.
        ("config.json", config),
    ):
        write_atomic(target / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return ConvertResult(
        target=str(target),
        tensors=len(weights),
        licence=str(metadata.get("general.license", "")),
    )


def _number(metadata: Metadata, key: str) -> int:
    return int(metadata[key].item())


def _answer(folder: Path) -> Record:
    request = read_request(folder, ConvertRequest)
    return convert(Path(request.source), Path(request.target))


if __name__ == "__main__":
    sys.exit(serve(_answer))
