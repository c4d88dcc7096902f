"""Is this folder an adapter, and one for this base model? Read from files, without mlx."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from oodatcaa.errors import OodatcaaError

CONFIG = "adapter_config.json"
WEIGHTS = "adapters.safetensors"
LEAVES = frozenset({"lora_a", "lora_b", "m"})
"""The last name part of every tensor mlx-lm's LoRA and DoRA layers train."""
MAX_HEADER = 100_000_000
"""The safetensors format's own limit for its header."""


def adapter_problems(folder: Path, model: str) -> list[str]:
    """Everything that keeps `folder` from being served on top of `model`; empty when nothing."""
    if not folder.is_dir():
        return [f"{folder} is not a folder"]
    return [*_config_problems(folder / CONFIG, model), *_weight_problems(folder / WEIGHTS)]


def check_adapter(folder: Path, model: str) -> None:
    """Raises OodatcaaError `pool.adapter` with all problems at once."""
    if problems := adapter_problems(folder, model):
        raise OodatcaaError(
            "pool.adapter",
            f"{folder} can not be served on {model}: {problems[0]}",
            hint="see which adapters there are, and for which model, with `oodatcaa runs`",
            details=problems,
        )


def _config_problems(path: Path, model: str) -> list[str]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return [f"{path.name} is missing"]
    except (OSError, ValueError) as error:
        return [f"{path.name} can not be read: {error}"]
    if not isinstance(config, dict):
        return [f"{path.name} holds no object"]
    problems = []
    if not isinstance(config.get("num_layers"), int):
        problems.append(f"{path.name} has no num_layers")
    lora = config.get("lora_parameters")
    missing = [k for k in ("rank", "scale", "dropout") if k not in (lora or {})]
    if missing:
        problems.append(f"{path.name}: lora_parameters lack {', '.join(missing)}")
    base = config.get("model")
    if not isinstance(base, str):
        problems.append(f"{path.name} does not name its base model")
    elif not _same_model(base, model):
        problems.append(f"it was trained on {base}")
    return problems


def _same_model(base: str, model: str) -> bool:
    return base == model or Path(base).expanduser().resolve() == Path(model).expanduser().resolve()


def _weight_problems(path: Path) -> list[str]:
    try:
        header = read_header(path)
    except FileNotFoundError:
        return [f"{path.name} is missing"]
    except (OSError, ValueError) as error:
        return [f"{path.name} is not a safetensors file: {error}"]
    names = [name for name in header if name != "__metadata__"]
    if not names:
        return [f"{path.name} holds no tensors"]
    strange = [n for n in names if n.rpartition(".")[2] not in LEAVES]
    problems = [f"{path.name}: {name} is not an adapter tensor" for name in strange]
    size = path.stat().st_size
    end = max(header[name]["data_offsets"][1] for name in names)
    if (whole := 8 + _header_length(path) + end) != size:
        problems.append(f"{path.name} has {size} bytes instead of {whole}: it is cut off")
    return problems


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file. ValueError when it is none."""
    length = _header_length(path)
    with path.open("rb") as file:
        file.seek(8)
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    return header


def _header_length(path: Path) -> int:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if not 0 < length <= min(MAX_HEADER, path.stat().st_size):
        raise ValueError("its header length makes no sense")
    return length
