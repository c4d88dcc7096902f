"""Gradient checkpointing (Chen et al. 2016) of the lowest blocks of a model.

mlx-lm's `grad_checkpoint` patches a class, so every block of it is computed again, and patching
twice nests. Here the blocks are chosen: those at the top are the first to be needed in the
backward pass and the first to be freed, so that keeping what they computed costs the least time.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from oodatcaa.domain.qlora import QLoRA

MARK = "_recomputed_by"


def recompute(network: Any, params: QLoRA) -> None:
    """Compute the lowest `params.recomputed()` trained blocks again in the backward pass, and
    every block below them: frozen ones keep what they computed, too, where a gradient is traced
    through them. Once for a model, before anything else replaces its blocks' `__call__`."""
    blocks = list(network.layers)
    trained = params.trained_blocks(len(blocks))
    chosen = blocks[: len(blocks) - trained + params.recomputed(trained)]
    token = object()
    for block in chosen:
        setattr(block, MARK, token)
    for kind in {type(block) for block in chosen}:
        _patch(kind, token)


def _patch(kind: type[Any], token: object) -> None:
    whole = kind.__call__

    def call(block: Any, *args: Any, **options: Any) -> Any:
        if getattr(block, MARK, None) is not token:
            return whole(block, *args, **options)

        def run(tensors: Any, *args: Any, **options: Any) -> Any:
            block.update(tensors)
            return whole(block, *args, **options)

        return mx.checkpoint(run)(block.trainable_parameters(), *args, **options)

    kind.__call__ = call
