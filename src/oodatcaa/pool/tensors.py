"""Safetensors files without mlx: headers, hashes, and whether every value is finite."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_HEADER = 100_000_000
"""The format's own limit for its header."""
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "I64": 8, "U64": 8,
         "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}  # fmt: skip
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
BLOCK = 1 << 24


@dataclass(frozen=True)
class Tensor:
    """`start` and `end` count from the beginning of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def bytes(self) -> int:
        return self.end - self.start


def read_tensors(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """(tensors by name, every problem of the file). Reads the header only."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                return {}, [f"{path.name} is not a whole safetensors file ({size} bytes)"]
            header = json.loads(file.read(length))
    except FileNotFoundError:
        return {}, [f"{path.name} is missing"]
    except (OSError, ValueError, RecursionError) as error:
        return {}, [f"{path.name} can not be read: {error}"]
    if not isinstance(header, dict):
        return {}, [f"{path.name}: its header is no object"]
    return _entries(path.name, header, 8 + length, size)


def _entries(
    file: str, header: dict[str, Any], data: int, size: int
) -> tuple[dict[str, Tensor], list[str]]:
    found: dict[str, Tensor] = {}
    problems: list[str] = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            start, end = (int(n) for n in entry["data_offsets"])
            shape = tuple(int(n) for n in entry["shape"])
            tensor = Tensor(name, str(entry["dtype"]), shape, data + start, data + end)
            width = BYTES.get(tensor.dtype)
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"{file}: {name}: its header entry makes no sense ({error!r})")
            continue
        if width is not None and math.prod(shape) * width != tensor.bytes:
            problems.append(f"{file}: {name}: {tensor.bytes} bytes do not make a {shape}")
            continue
        found[name] = tensor
    if not found and not problems:
        return {}, [f"{file} holds no tensors"]
    whole = max((t.end for t in found.values()), default=data)
    if whole != size:
        cut = "it is cut off" if size < whole else "something was added to it"
        problems.append(f"{file} has {size} bytes instead of {whole}: {cut}; copy it again")
    return found, problems


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Values:
    finite: bool
    zero: bool


def look_at(path: Path, tensor: Tensor) -> Values:
    """Whether all values of a floating-point tensor are finite, and whether all are zero."""
    import numpy as np

    finite, zero = True, True
    for block in _blocks(path, tensor):
        if tensor.dtype == "BF16":
            bits = np.frombuffer(block, "<u2")
            finite = finite and not bool(((bits & 0x7F80) == 0x7F80).any())
            zero = zero and not bool((bits & 0x7FFF).any())
        else:
            width = BYTES[tensor.dtype]
            values = np.frombuffer(block, f"<f{width}")
            finite = finite and bool(np.isfinite(values).all())
            zero = zero and not bool(values.any())
    return Values(finite, zero)


def _blocks(path: Path, tensor: Tensor) -> Iterator[bytes]:
    left = tensor.bytes
    with path.open("rb") as file:
        file.seek(tensor.start)
        while left > 0:
            block = file.read(min(BLOCK, left))
            if not block:
                return
            left -= len(block)
            yield block
