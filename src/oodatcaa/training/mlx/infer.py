"""Child process: load a model (with or without an adapter) and answer prompts, measured.

`python -m oodatcaa.training.mlx.infer FOLDER` (InferRequest -> InferResult).
"""

from __future__ import annotations

import sys
from pathlib import Path

from oodatcaa.domain.base import Record
from oodatcaa.training.mlx.blas import preload
from oodatcaa.training.mlx.child import read_request, serve
from oodatcaa.training.protocol import InferRequest, InferResult


def infer(request: InferRequest) -> InferResult:
    """Every prompt answered on its own, in order; the model is loaded once."""
    preload()
    # mlx must not be imported before the BLAS is in place.
    from oodatcaa.training.mlx.chat import Chat

    chat = Chat(request.model, request.adapter_dir, request.memory_limit_bytes)
    probes = [
        chat.answer(prompt, request.max_tokens, request.temperature, request.seed)
        for prompt in request.prompts
    ]
    return InferResult(probes=tuple(probes))


def _answer(folder: Path) -> Record:
    return infer(read_request(folder, InferRequest))


if __name__ == "__main__":
    sys.exit(serve(_answer))
