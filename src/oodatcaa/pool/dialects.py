"""adapter_config.json in mlx-lm's dialect and in PEFT's, read into one layout.

PEFT (github.com/huggingface/peft, LoraConfig): `r`, `lora_alpha`, `target_modules`; tensors are
named `base_model.model.<layer>.lora_A.weight`, shaped (rank, inputs) and (outputs, rank).
mlx-lm: `lora_parameters` with rank and scale; `<layer>.lora_a` is (inputs, rank).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard

CONFIG = "adapter_config.json"
MLX_WEIGHTS = "adapters.safetensors"
PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_PICKLE = "adapter_model.bin"
_MLX_LEAVES = {"lora_a": "a", "lora_b": "b", "m": "m"}
_PEFT_NAME = re.compile(
    r"^(?:base_model\.model\.)?(?P<layer>.+)\.(?P<leaf>lora_A|lora_B|lora_embedding_A|"
    r"lora_embedding_B|lora_magnitude_vector)(?:\.[^.]+)*?(?:\.weight)?$"
)
_PEFT_LEAVES = {"lora_A": "a", "lora_embedding_A": "a", "lora_B": "b", "lora_embedding_B": "b",
                "lora_magnitude_vector": "m"}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """What a config promises. `rank` and `scale` are None where it does not say."""

    dialect: Literal["mlx", "peft"]
    dora: bool
    rank: int | None
    scale: float | None
    num_layers: int | None
    """The last N blocks, as mlx-lm counts; None = no promise, 0 or less = all."""
    layers: tuple[int, ...] | None
    """Exactly these blocks, as PEFT's layers_to_transform says."""
    keys: tuple[str, ...] | None
    base_model: str | None
    description: str | None
    full: bool = False
    """All weights of some blocks were trained: no adapter in the pool's sense."""
    raw: dict[str, Any] = field(default_factory=dict)

    def rank_of(self, layer: str) -> int | None:
        rank = _patterned(self.raw.get("rank_pattern"), layer, self.rank)
        return rank if _whole(rank) and rank > 0 else None

    def scale_of(self, layer: str) -> float | None:
        """alpha / rank, or alpha / sqrt(rank) with rsLoRA (Kalajdzievski 2023)."""
        if self.dialect == "mlx":
            return self.scale
        alpha = _patterned(self.raw.get("alpha_pattern"), layer, self.raw.get("lora_alpha"))
        rank = self.rank_of(layer)
        if not _number(alpha) or not rank:
            return None
        return float(alpha) / (rank**0.5 if self.raw.get("use_rslora") else rank)


def read_layout(folder: Path) -> tuple[Layout | None, list[str]]:
    """(layout, every problem of adapter_config.json)."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, [f"{CONFIG} is missing; copy it from where the adapter was trained"]
    except (OSError, ValueError, RecursionError) as error:
        return None, [f"{CONFIG} can not be read: {error}"]
    if not isinstance(config, dict):
        return None, [f"{CONFIG} holds no object"]
    return _peft(config) if "peft_type" in config or "lora_alpha" in config else _mlx(config)


def _mlx(config: dict[str, Any]) -> tuple[Layout, list[str]]:
    problems: list[str] = []
    kind = config.get("fine_tune_type", "lora")
    if kind == "full":
        problems.append(
            "fine_tune_type is full: it has weights of its own instead of low-rank updates and "
            "can not share a base; make a model of it with `oodatcaa fuse`"
        )
    elif kind not in ("lora", "dora"):
        problems.append(f"{CONFIG}: fine_tune_type {kind!r} is not lora or dora")
    count = config.get("num_layers")
    if not _whole(count):
        problems.append(f"{CONFIG} has no num_layers (a whole number)")
    lora = config.get("lora_parameters")
    lora = lora if isinstance(lora, dict) else {}
    rank, scale, keys = lora.get("rank"), lora.get("scale"), lora.get("keys")
    if not _whole(rank) or rank < 1:
        problems.append(f"{CONFIG}: lora_parameters has no rank (a whole number above 0)")
    if not _number(scale):
        said = "; it has alpha: scale = alpha / rank" if "alpha" in lora else ""
        problems.append(f"{CONFIG}: lora_parameters has no scale (a number){said}")
    if keys is not None and not _names(keys):
        problems.append(f"{CONFIG}: lora_parameters.keys is no list of names")
        keys = None
    layout = Layout(
        dialect="mlx",
        dora=kind == "dora",
        full=kind == "full",
        rank=rank if _whole(rank) and rank > 0 else None,
        scale=float(scale) if _number(scale) else None,
        num_layers=count if _whole(count) else None,
        layers=None,
        keys=tuple(keys) if keys else None,
        base_model=_text(config.get("model")),
        description=_text(config.get("description")),
    )
    return layout, problems


def _peft(config: dict[str, Any]) -> tuple[Layout, list[str]]:
    problems: list[str] = []
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        problems.append(f"{CONFIG}: peft_type {kind!r} is not LORA, the only one that is converted")
    task = config.get("task_type")
    if task not in (None, "CAUSAL_LM"):
        problems.append(f"{CONFIG}: task_type {task!r} is no text generation (CAUSAL_LM)")
    rank = config.get("r")
    if not _whole(rank) or rank < 1:
        problems.append(f"{CONFIG} has no r (the rank, a whole number above 0)")
    if not _number(config.get("lora_alpha")):
        problems.append(f"{CONFIG} has no lora_alpha (a number)")
    for key in ("modules_to_save", "trainable_token_indices"):
        if config.get(key):
            problems.append(f"{CONFIG}: {key} replaces whole layers; merge the adapter in PEFT")
    if config.get("bias", "none") != "none":
        problems.append(f"{CONFIG}: bias {config['bias']!r} trains biases; merge it in PEFT")
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key) or {}, dict):
            problems.append(f"{CONFIG}: {key} is no table")
    chosen = config.get("layers_to_transform")
    chosen = [chosen] if _whole(chosen) else chosen
    if chosen is not None and not (isinstance(chosen, list) and all(map(_whole, chosen))):
        problems.append(f"{CONFIG}: layers_to_transform is no list of numbers")
        chosen = None
    targets = config.get("target_modules")
    rank = rank if _whole(rank) and rank > 0 else None
    alpha = config.get("lora_alpha")
    layout = Layout(
        dialect="peft",
        dora=bool(config.get("use_dora")),
        rank=rank,
        scale=float(alpha) / rank if _number(alpha) and rank else None,
        num_layers=None,
        layers=tuple(sorted(chosen)) if chosen else None,
        keys=tuple(targets) if _names(targets) else None,
        base_model=_text(config.get("base_model_name_or_path")),
        description=_text(config.get("description")),
        raw=config if not problems else {},
    )
    return layout, problems


def unsaid(weights: str, names: Iterable[str]) -> Layout:
    """What a weights file alone lets suppose: no promises, so that everything else is checked."""
    return Layout(
        dialect="peft" if weights == PEFT_WEIGHTS else "mlx",
        dora=any(name.endswith((".m", "lora_magnitude_vector.weight")) for name in names),
        rank=None,
        scale=None,
        num_layers=None,
        layers=None,
        keys=None,
        base_model=None,
        description=None,
    )


def weights_file(folder: Path, layout: Layout | None) -> Path | str:
    """The weights of an adapter folder, or why there are none."""
    names = [MLX_WEIGHTS, PEFT_WEIGHTS]
    if layout is not None and layout.dialect == "peft":
        names.reverse()
    for name in names:
        if (folder / name).is_file():
            return folder / name
    if (folder / PEFT_PICKLE).is_file():
        return f"{PEFT_PICKLE} is a pickle, which can run code; save it again as safetensors"
    return f"{names[0]} is missing"


def part_of(name: str, dialect: str) -> tuple[str, str] | None:
    """(layer, a | b | m) of a tensor's name; None when it is no adapter tensor."""
    if dialect == "peft":
        match = _PEFT_NAME.match(name)
        return (match["layer"], _PEFT_LEAVES[match["leaf"]]) if match else None
    layer, _, leaf = name.rpartition(".")
    return (layer, _MLX_LEAVES[leaf]) if layer and leaf in _MLX_LEAVES else None


def _patterned(patterns: Any, layer: str, default: Any) -> Any:
    """PEFT: a pattern is a regular expression that matches the end of a layer's name."""
    for pattern, value in (patterns or {}).items():
        try:
            if re.match(rf"^(?:.*\.)?(?:{pattern})$", layer):
                return value
        except re.error:
            continue
    return default


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _names(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
