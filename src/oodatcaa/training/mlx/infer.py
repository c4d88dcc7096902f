"""Child process: load a model (with or without an adapter) and answer prompts, measured.

`python -m oodatcaa.training.mlx.infer FOLDER` (InferRequest -> InferResult).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodatcaa.domain.base import Record
from oodatcaa.errors import RefusedError
from oodatcaa.kit.memory import own_memory
from oodatcaa.training.mlx.blas import preload
from oodatcaa.training.protocol import FAST_CPU, InferRequest, InferResult
from oodatcaa.training.serving import read_request, serve

if TYPE_CHECKING:
    from oodatcaa.training.mlx.chat import Chat

ENGINE = "oodatcaa.training.mlx.infer:open_base"
"""The entry point that the pool's children load a base model with."""

UNTOUCHED = 500_000_000
"""Threads' stacks and the allocator's arenas count for the kernel, though nobody touches them. A
pool's limit may be small, and a child that fails at them could not say why."""


def open_base(model: str, memory_limit_bytes: int, folder: Path) -> tuple[Any, Any]:
    """A network and its tokenizer as stock mlx-lm loads them, behind this process's memory wall.

    None of the CPU measures of training: served text equals that of `mlx_lm.generate`.
    """
    os.environ[FAST_CPU] = "0"
    # mlx must not be imported before it is known how.
    from oodatcaa.training.mlx.guard import COUNTERS, gate_limit
    from oodatcaa.training.mlx.setup import load_base
    from oodatcaa.training.wall import Guard, limit_data

    allowed = gate_limit(memory_limit_bytes)
    if (held := own_memory()) > allowed:
        raise RefusedError(
            "pool.memory",
            f"a process with mlx in it needs {held / 1e9:.2f} GB before any model is loaded, "
            f"the limit is {allowed / 1e9:.2f} GB",
            hint="raise the memory limit",
        )
    Guard(folder, allowed, COUNTERS).start()
    limit_data(allowed + UNTOUCHED)
    return load_base(model)


def open_chat(model: str, adapter_dir: str | None, memory_limit_bytes: int) -> Chat:
    """Load a pair in this process, with a real BLAS where MLX computes on the CPU."""
    preload()
    # mlx must not be imported before the BLAS is in place.
    from oodatcaa.training.mlx.chat import Chat

    return Chat(model, adapter_dir, memory_limit_bytes)


def infer(request: InferRequest) -> InferResult:
    """Every prompt answered on its own, in order; the model is loaded once."""
    chat = open_chat(request.model, request.adapter_dir, request.memory_limit_bytes)
    probes = [
        chat.answer(prompt, request.max_tokens, request.temperature, request.seed)
        for prompt in request.prompts
    ]
    return InferResult(probes=tuple(probes))


def _answer(folder: Path) -> Record:
    request = read_request(folder, InferRequest)
    preload()
    from oodatcaa.training.mlx.guard import walled

    with walled(folder, request.memory_limit_bytes):
        return infer(request)


if __name__ == "__main__":
    sys.exit(serve(_answer))
