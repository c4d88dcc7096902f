"""What a model looks like, read from config.json and tensor headers; no tensor is loaded."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from oodatcaa.domain.memory import ModelShape
from oodatcaa.errors import OodatcaaError
from oodatcaa.training.blocks import read_blocks

DTYPE_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16,
    "I16": 16, "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8,
    "F4": 4,
}  # fmt: skip
SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap")
AFTER_HEAD = (
    *SOFT_CAPS, "logit_scale", "logits_scaling", "lm_head_multiplier", "dim_model_base",
    "mup_width_multiplier",
)  # fmt: skip
"""Options that change the logits: the worker then can not skip positions without a target."""
CAPPED = frozenset({
    "gemma2", "gemma3n", "gemma4", "gemma4_text", "muse_glimmer", "nanochat", "recurrent_gemma",
})  # fmt: skip
CHANGED = CAPPED | {"cohere", "cohere2", "phi3small"}
"""Types of models that change them where the configuration says nothing."""
WRAPPERS = {"model.language_model.": "model.", "language_model.": ""}
"""What stands before the names in a language model that pictures or sound can be given to, and
what without them."""
BODIES = ("model", "transformer")
HEADS = ("lm_head", "output")
EMBEDDINGS = ("embed_tokens", "tok_embeddings", "wte", "word_embeddings", "embedding", "embeddings")
"""mlx-lm's names of what the output layer comes after, of that layer, and in its body of what takes
its place where it is tied. The loss applies these to some positions alone (`mlx/loss.py`)."""
OTHER_SENSES = frozenset({
    "vision_tower", "vision_model", "vision_embedder", "vision_embed_tokens", "visual",
    "multi_modal_projector", "mm_projector", "audio_tower", "embed_audio", "embed_vision",
})  # fmt: skip
"""Parts for pictures and sound, which mlx-lm does not load unless the model's type is one of these.
"""
LOADS_ALL = frozenset({"muse_spark"})
MAX_HEADER = 100_000_000
"""The safetensors format's own bound on a header."""


class _Tensor:
    def __init__(self, dtype: str, shape: list[int]) -> None:
        self.dtype = dtype
        self.shape = shape

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * DTYPE_BITS[self.dtype] // 8


def read_shape(model_path: Path | str) -> ModelShape:
    """The shape of an mlx-lm model folder.

    Quantised weights count by what they stand for: `parameters` is the logical number, while
    `weight_bytes` is what is stored. Raises OodatcaaError `model.unreadable` with every problem
    found: missing or malformed config fields, missing shards, cut-off files.
    """
    folder = Path(model_path)
    problems: list[str] = []
    config = _read_config(folder, problems)
    tensors, others = _read_tensors(folder, problems)
    if config is not None and config.get("model_type") in LOADS_ALL:
        tensors, others = {**tensors, **others}, {}
    if not tensors and not problems:
        problems.append("its model*.safetensors hold no language model")
    if config is not None and tensors and not problems:
        shape = _shape(config, tensors, others, problems)
        if shape is not None:
            tokenizer = folder / "tokenizer.json"
            size = tokenizer.stat().st_size if tokenizer.is_file() else 0
            return shape.evolve(tokenizer_bytes=size)
    elif config is not None:
        _fields(config, tensors, problems)
    raise OodatcaaError(
        "model.unreadable",
        f"{folder} is not a complete mlx-lm model folder: {problems[0]}"
        + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""),
        hint="oodatcaa models fetch demo, or convert the model with mlx_lm.convert",
        details=problems,
    )


def _read_config(folder: Path, problems: list[str]) -> dict[str, Any] | None:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{path.name} is missing" if folder.is_dir() else "no such folder")
        return None
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} can not be read: {error}")
        return None
    if not isinstance(config, dict):
        problems.append(f"{path.name} holds no JSON object")
        return None
    return config


def _read_tensors(
    folder: Path, problems: list[str]
) -> tuple[dict[str, _Tensor], dict[str, _Tensor]]:
    """Those of the language model, and those for pictures and sound."""
    tensors: dict[str, _Tensor] = {}
    others: dict[str, _Tensor] = {}
    shards = sorted(folder.glob("model*.safetensors"))
    for name in sorted(_indexed(folder, problems) - {shard.name for shard in shards}):
        problems.append(f"{name} is named by model.safetensors.index.json but missing")
    if not shards and folder.is_dir():
        problems.append("no model*.safetensors")
    for shard in shards:
        for name, tensor in _header(shard, problems):
            if not OTHER_SENSES.isdisjoint(name.split(".")):
                others[name] = tensor
                continue
            if name in tensors:
                problems.append(f"{shard.name}: {name} is in another shard too")
            tensors[name] = tensor
    return tensors, others


def _indexed(folder: Path, problems: list[str]) -> set[str]:
    path = folder / "model.safetensors.index.json"
    if not path.exists():
        return set()
    try:
        return {str(name) for name in json.loads(path.read_text("utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problems.append(f"{path.name} can not be read: {error!r}")
        return set()


def _header(path: Path, problems: list[str]) -> Iterator[tuple[str, _Tensor]]:
    """The tensors of one safetensors file: 8 bytes little-endian length, then JSON."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            problems.append(f"{path.name} is not a whole safetensors file ({size} bytes)")
            return
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            problems.append(f"{path.name}: header is not JSON: {error}")
            return
    if not isinstance(header, dict) or not header.keys() - {"__metadata__"}:
        problems.append(f"{path.name}: the header names no tensor")
        return
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            tensor = _Tensor(entry["dtype"], [int(n) for n in entry["shape"]])
            end = max(end, int(entry["data_offsets"][1]))
            DTYPE_BITS[tensor.dtype]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            problems.append(f"{path.name}: {name}: {error!r}")
            continue
        yield name, tensor
    if 8 + length + end > size:
        missing = 8 + length + end - size
        problems.append(f"{path.name} is cut off: {missing} bytes are missing")


_REQUIRED: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embd", "d_model", "model_dim", "hidden_dim"),
    "num_layers": (
        "num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers",
    ),
}  # fmt: skip
_OPTIONAL: dict[str, tuple[str, ...]] = {
    "num_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "num_query_heads"),
    "num_kv_heads": ("num_key_value_heads", "num_kv_heads", "n_kv_heads"),
    "head_dim": ("head_dim",),
    "vocab_size": ("vocab_size", "num_vocab"),
    "intermediate_size": (
        "intermediate_size", "ffn_dim", "n_inner", "mlp_hidden_size", "ffn_hidden_size",
    ),
}  # fmt: skip
"""Read from the tensors, or reckoned, where the configuration leaves them to mlx-lm's defaults."""
_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk")
_EXPERT_WIDTHS = ("moe_intermediate_size", "expert_ffn_hidden_size")


def _fields(
    config: dict[str, Any], tensors: dict[str, _Tensor], problems: list[str]
) -> dict[str, Any]:
    text = _text(config)
    found: dict[str, Any] = {}
    if not isinstance(text.get("model_type"), str):
        problems.append("config.json: model_type is missing")
    found["model_type"] = str(config.get("model_type") or text.get("model_type"))
    for name, keys in _REQUIRED.items():
        value = _positive(text, keys, problems)
        if value is None:
            problems.append(f"config.json: {keys[0]} is missing")
        found[name] = value
    for name, keys in _OPTIONAL.items():
        found[name] = _positive(text, keys, problems)
    found["vocab_size"] = found["vocab_size"] or _rows(tensors, (*HEADS, *EMBEDDINGS)) or None
    if found["vocab_size"] is None:
        problems.append("config.json: vocab_size is missing")
    experts = _positive(text, _EXPERTS, problems, none=0)
    width = _positive(text, _EXPERT_WIDTHS, problems, none=0)
    if experts and (width or found["intermediate_size"]):
        # What a token passes through, not what is stored.
        found["intermediate_size"] = experts * (width or found["intermediate_size"])
    return found


def _text(config: dict[str, Any]) -> dict[str, Any]:
    """The options of the language model, of one that is wrapped as well."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def _positive(
    config: dict[str, Any], keys: tuple[str, ...], problems: list[str], none: int | None = None
) -> int | None:
    """The first of `keys` that is there; of a list with a number for each block the largest, and a
    block without any has 0. `none` stands for a key that is not there."""
    for key in keys:
        value = config.get(key)
        if value is None or value == none:
            continue
        each: list[int] = value if isinstance(value, list) else [value]
        least = 0 if isinstance(value, list) else 1
        whole = [one for one in each if isinstance(one, int) and not isinstance(one, bool)]
        if len(whole) < len(each) or min(whole, default=0) < least or max(whole, default=0) < 1:
            problems.append(f"config.json: {key} is {value!r}, not a positive whole number")
            return 1  # reported already; go on to find the other problems
        return max(whole)
    return None


def _from_tensors(fields: dict[str, Any], tensors: dict[str, _Tensor]) -> None:
    """Fill in what the configuration does not say."""
    hidden = fields["hidden_size"]
    queries, keys, normed = (_rows(tensors, (name,)) for name in ("q_proj", "k_proj", "q_norm"))
    if fields["num_heads"] and normed * fields["num_heads"] != queries:
        normed = 0  # over all heads together, or another one for each
    size = fields["head_dim"] or (normed if normed and queries % normed == 0 else None)
    # A model without attention counts as one with one head, which is a little more.
    heads = fields["num_heads"] or (max(1, (queries or hidden) // size) if size else 1)
    size = size or max(1, (queries or hidden) // heads)
    fields["num_kv_heads"] = fields["num_kv_heads"] or (max(1, keys // size) if keys else heads)
    fields["num_heads"], fields["head_dim"] = heads, size
    fields["intermediate_size"] = fields["intermediate_size"] or 4 * hidden


def _rows(tensors: dict[str, _Tensor], layers: tuple[str, ...]) -> int:
    """Of the largest weight of a layer with one of these names; 0 without one."""
    found = (
        tensor.shape[0]
        for name, tensor in tensors.items()
        if tensor.shape and name.endswith(".weight") and name.split(".")[-2] in layers
    )
    return max(found, default=0)


def _plain(tensors: dict[str, _Tensor]) -> set[str]:
    """The layers' names as in a model that is not wrapped."""
    found = set()
    for name in tensors:
        before = next((one for one in WRAPPERS if name.startswith(one)), "")
        inner = WRAPPERS.get(before, "") + name.removeprefix(before)
        found.add(inner.rpartition(".")[0])
    return found


def _changes(config: dict[str, Any], options: tuple[str, ...], kinds: frozenset[str]) -> bool:
    text = _text(config)
    types = {config.get("model_type"), text.get("model_type")}
    return any(text.get(key) for key in options) or not types.isdisjoint(kinds)


def _splits(layers: set[str]) -> bool:
    """Whether the worker can apply the output layer to some positions alone: its own names, or
    those of a published model that mlx-lm puts its own before."""
    tied = {f"{body}.{name}" for name in EMBEDDINGS for body in BODIES}
    bodies = {layer.partition(".")[0] for layer in layers}
    own = not bodies.isdisjoint(BODIES) and not layers.isdisjoint(HEADS)
    return own or not layers.isdisjoint({*tied, *EMBEDDINGS})


def _shape(
    config: dict[str, Any],
    tensors: dict[str, _Tensor],
    others: dict[str, _Tensor],
    problems: list[str],
) -> ModelShape | None:
    fields = _fields(config, tensors, problems)
    quantization = config.get("quantization") or config.get("quantization_config") or {}
    if not isinstance(quantization, dict):
        problems.append("config.json: quantization is no JSON object")
        quantization = {}
    parameters = _parameters(tensors, quantization, problems)
    if problems:
        return None
    _from_tensors(fields, tensors)
    quantised = any(name.endswith(".scales") for name in tensors)
    layers = _plain(tensors)
    changed = _changes(config, AFTER_HEAD, CHANGED)
    try:
        return ModelShape(
            **fields,
            tied_embeddings=layers.isdisjoint(HEADS),
            weight_bytes=sum(tensor.bytes for tensor in tensors.values()),
            parameters=parameters,
            bits=quantization.get("bits") if quantised else None,
            group_size=quantization.get("group_size") if quantised else None,
            dense_logits=changed or not _splits(layers),
            changed_logits=changed,
            capped_logits=_changes(config, SOFT_CAPS, CAPPED),
            other_parameters=sum(tensor.elements for tensor in others.values()),
            blocks=read_blocks(tensors, fields["num_layers"], _groups(tensors, quantization)),
        )
    except ValidationError as error:
        problems += [f"config.json: {e['loc'][0]}: {e['msg']}" for e in error.errors()]
        return None


def _groups(tensors: dict[str, _Tensor], quantization: dict[str, Any]) -> dict[str, int]:
    """The quantisation group of every packed weight, by its name without `.weight`."""
    found = {}
    for name in tensors:
        base, _, kind = name.rpartition(".")
        if kind == "scales" and f"{base}.weight" in tensors:
            own = quantization.get(base)
            found[base] = int((own if isinstance(own, dict) else quantization)["group_size"])
    return found


def _parameters(
    tensors: dict[str, _Tensor], quantization: dict[str, Any], problems: list[str]
) -> int:
    """Logical parameters; a packed weight has scales beside it: one per group of its inputs."""
    total = 0
    for name, tensor in tensors.items():
        base, _, kind = name.rpartition(".")
        if kind in ("scales", "biases") and f"{base}.weight" in tensors:
            continue
        scales = tensors.get(f"{base}.scales") if kind == "weight" else None
        if scales is None:
            total += tensor.elements
            continue
        own = quantization.get(base)
        group = (own if isinstance(own, dict) else quantization).get("group_size")
        if not isinstance(group, int) or group < 1:
            problems.append(f"config.json: no quantization group_size for {base}")
            continue
        total += scales.elements * group
    return max(total, 1)
