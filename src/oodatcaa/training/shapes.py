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
SOFT_CAP = "final_logit_softcapping"
AFTER_HEAD = (SOFT_CAP, "logit_scale", "logits_scaling", "lm_head_multiplier")
"""Options that change the logits: the worker then can not skip positions without a target."""
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
    tensors = _read_tensors(folder, problems)
    if config is not None and tensors and not problems:
        shape = _shape(config, tensors, problems)
        if shape is not None:
            tokenizer = folder / "tokenizer.json"
            size = tokenizer.stat().st_size if tokenizer.is_file() else 0
            return shape.evolve(tokenizer_bytes=size)
    elif config is not None:
        _fields(config, problems)
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


def _read_tensors(folder: Path, problems: list[str]) -> dict[str, _Tensor]:
    tensors: dict[str, _Tensor] = {}
    shards = sorted(folder.glob("model*.safetensors"))
    for name in sorted(_indexed(folder, problems) - {shard.name for shard in shards}):
        problems.append(f"{name} is named by model.safetensors.index.json but missing")
    if not shards and folder.is_dir():
        problems.append("no model*.safetensors")
    for shard in shards:
        for name, tensor in _header(shard, problems):
            if name in tensors:
                problems.append(f"{shard.name}: {name} is in another shard too")
            tensors[name] = tensor
    return tensors


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


_REQUIRED = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "num_heads": ("num_attention_heads", "n_head", "n_heads"),
    "vocab_size": ("vocab_size",),
}


def _fields(config: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    inner = config.get("text_config")
    text = {**config, **inner} if isinstance(inner, dict) else config
    found: dict[str, Any] = {}
    if not isinstance(text.get("model_type"), str):
        problems.append("config.json: model_type is missing")
    found["model_type"] = str(config.get("model_type") or text.get("model_type"))
    for name, keys in _REQUIRED.items():
        value = _positive(text, keys, problems)
        if value is None:
            problems.append(f"config.json: {keys[0]} is missing")
        found[name] = value
    keys = ("intermediate_size", "ffn_dim", "n_inner")
    found["intermediate_size"] = _positive(text, keys, problems)
    found["num_kv_heads"] = _positive(text, ("num_key_value_heads",), problems)
    found["head_dim"] = _positive(text, ("head_dim",), problems)
    experts = _positive(text, ("num_experts_per_tok", "num_experts_per_token"), problems)
    width = _positive(text, ("moe_intermediate_size",), problems)
    if experts and (width or found["intermediate_size"]):
        # What a token passes through, not what is stored.
        found["intermediate_size"] = experts * (width or found["intermediate_size"])
    return found


def _positive(config: dict[str, Any], keys: tuple[str, ...], problems: list[str]) -> int | None:
    for key in keys:
        value = config.get(key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            problems.append(f"config.json: {key} is {value!r}, not a positive whole number")
            return 1  # reported already; go on to find the other problems
        return value
    return None


def _shape(
    config: dict[str, Any], tensors: dict[str, _Tensor], problems: list[str]
) -> ModelShape | None:
    fields = _fields(config, problems)
    quantization = config.get("quantization") or config.get("quantization_config") or {}
    if not isinstance(quantization, dict):
        problems.append("config.json: quantization is no JSON object")
        quantization = {}
    parameters = _parameters(tensors, quantization, problems)
    if problems:
        return None
    hidden, heads = fields["hidden_size"], fields["num_heads"]
    fields["head_dim"] = fields["head_dim"] or max(1, hidden // heads)
    fields["num_kv_heads"] = fields["num_kv_heads"] or heads
    fields["intermediate_size"] = fields["intermediate_size"] or 4 * hidden
    quantised = any(name.endswith(".scales") for name in tensors)
    try:
        return ModelShape(
            **fields,
            tied_embeddings=not any(name.endswith("lm_head.weight") for name in tensors),
            weight_bytes=sum(tensor.bytes for tensor in tensors.values()),
            parameters=parameters,
            bits=quantization.get("bits") if quantised else None,
            group_size=quantization.get("group_size") if quantised else None,
            dense_logits=any(config.get(key) for key in AFTER_HEAD),
            capped_logits=bool(config.get(SOFT_CAP)),
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
