"""Child process: load a model (with or without an adapter) and answer prompts, measured.

`python -m oodatcaa.training.mlx.infer FOLDER` (InferRequest -> InferResult).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from oodatcaa.domain.base import Record
from oodatcaa.training.mlx.blas import preload
from oodatcaa.training.mlx.child import read_request, serve
from oodatcaa.training.protocol import InferRequest, InferResult

if TYPE_CHECKING:
    from oodatcaa.training.mlx.chat import Chat

ENGINE = "oodatcaa.training.mlx.infer:open_chat"
"""The entry point that a pool's children load a pair with."""


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
