"""An mlx-lm folder with quantised weights, as the float32 tensors that PyTorch computes with.

MLX's affine quantisation (mlx.core.quantize): groups of a row share a scale and a bias, `w = scale
* q + bias`; the integers of a row are one stream of bits, the lowest first, in 32-bit words.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from oodatcaa.errors import OodatcaaError

ROWS_AT_ONCE = 1024
"""Unpacked integers take more room than either side: a few rows at a time."""


def is_quantized(folder: Path) -> bool:
    """Whether mlx-lm quantised these weights (its `quantization` block in config.json)."""
    return bool(_quantization(folder))


def _quantization(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    found = config.get("quantization")
    return found if isinstance(found, dict) else {}


def dense_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the folder in float32, one by one.

    Raises OodatcaaError `model.unreadable` for a kind of quantisation that is not affine.
    """
    whole = _quantization(folder)
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            names = set(file.keys())
            for name in sorted(names):
                base, _, leaf = name.rpartition(".")
                packed = f"{base}.scales" in names
                if packed and leaf in ("scales", "biases"):
                    continue
                tensor = file.get_tensor(name)
                if packed and leaf == "weight":
                    own = whole.get(base)
                    said = {**whole, **(own if isinstance(own, dict) else {})}
                    if said.get("mode", "affine") != "affine" or f"{base}.biases" not in names:
                        raise _unknown(folder, str(said.get("mode", "without biases")))
                    scales, biases = (
                        file.get_tensor(f"{base}.{part}").float() for part in ("scales", "biases")
                    )
                    yield name, dequantize(tensor, scales, biases, int(said["bits"]))
                else:
                    yield name, tensor.float()


def dequantize(
    packed: torch.Tensor, scales: torch.Tensor, biases: torch.Tensor, bits: int
) -> torch.Tensor:
    """`packed` is (rows, words) of 32 bits; `scales` and `biases` are (rows, groups)."""
    rows = packed.shape[0]
    columns = packed.shape[1] * 32 // bits
    result = torch.empty(rows, columns)
    for first in range(0, rows, ROWS_AT_ONCE):
        part = slice(first, first + ROWS_AT_ONCE)
        values = _unpack(packed[part].view(torch.int32), bits, columns).float()
        grouped = values.view(values.shape[0], scales.shape[1], -1)
        grouped.mul_(scales[part, :, None]).add_(biases[part, :, None])
        result[part] = values
    return result


def _unpack(words: torch.Tensor, bits: int, columns: int) -> torch.Tensor:
    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32)
        # Arithmetic shifts bring the sign along; the mask takes it away again.
        return ((words[..., None] >> shifts) & (2**bits - 1)).view(words.shape[0], columns)
    octets = words.contiguous().view(torch.uint8).view(words.shape[0], -1)
    single = (octets[..., None] >> torch.arange(8, dtype=torch.uint8)) & 1
    stream = single.view(words.shape[0], columns, bits).to(torch.int32)
    return (stream << torch.arange(bits, dtype=torch.int32)).sum(-1)


def _unknown(folder: Path, kind: str) -> OodatcaaError:
    return OodatcaaError(
        "model.unreadable",
        f"{folder} is quantised in a way that backend hf can not undo: {kind}",
        hint="give backend hf the model's original folder, or use backend mlx",
    )
