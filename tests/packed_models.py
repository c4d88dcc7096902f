"""Small random models of several architectures, and examples to pack into rows."""

from __future__ import annotations

import importlib
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.training.examples import Example
from oodatcaa.training.mlx.cpu import on_cpu, speed_up
from oodatcaa.training.mlx.loss import make_loss, split_head
from oodatcaa.training.mlx.parallel import divided_gradient
from oodatcaa.training.mlx.recompute import recompute
from oodatcaa.training.mlx.team import Team, make_team

VOCABULARY = 200
LONGEST = 96
SIZES: dict[str, Any] = {
    **{"hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 96, "vocab_size": 200},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6},
    **{"rope_theta": 10000.0, "max_position_embeddings": 512, "tie_word_embeddings": True},
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama untied": ("llama", {"tie_word_embeddings": False}),
    "llama half sliding": (
        "llama",
        {"layer_types": ["full_attention", "sliding_attention"] * 2, "num_hidden_layers": 4}
        | {"sliding_window": 8},
    ),
    "llama long": (
        "llama",
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}},
    ),
    "qwen2": ("qwen2", {}),
    "gemma": ("gemma", {}),
    "gemma3": ("gemma3_text", {"sliding_window": 8, "sliding_window_pattern": 2}),
}


def step_loss(network: Any, rows: int, *, at_once: bool, again: bool) -> tuple[Any, Team | None]:
    """The loss of a step that draws numbers, as a training has it, and the threads that share its
    rows, which the caller ends. `again`: every block is computed again."""
    team = make_team(network, rows) if at_once else None
    assert (team is not None) is (at_once and rows > 1)
    loss = make_loss(split_head(network), at_once=at_once, random=True)
    if again:
        params = QLoRA(num_layers=-1, grad_checkpoint=True)
        recompute([network, *(team.networks if team else ())], params, at_once=at_once)
    if team is not None:
        loss = divided_gradient(team, loss, None, random=True)
    network.train()
    return loss, team


def network_of(
    kind: str,
    options: dict[str, Any],
    *,
    trained: int = 2,
    bits: int | None = None,
    dropout: float = 0.0,
) -> Any:
    source = importlib.import_module(f"mlx_lm.models.{kind}")
    mx.random.seed(1)
    network = source.Model(source.ModelArgs.from_dict({**SIZES, "model_type": kind, **options}))
    if bits is not None:
        nn.quantize(network, group_size=32, bits=bits)
    network.freeze()
    if on_cpu():
        speed_up(network)
    if trained:
        linear_to_lora_layers(network, trained, {"rank": 4, "scale": 2.0, "dropout": dropout})
        for name, tensor in tree_flatten(network.trainable_parameters()):
            # lora_b starts at 0, and then nothing of lora_a has a gradient.
            network.load_weights([(name, tensor + 0.02)], strict=False)
    return network


def drawn(lengths: list[int], seed: int = 0) -> list[Example]:
    """A third of each is prompt."""
    random = np.random.default_rng(seed)
    return [
        Example(tuple(random.integers(3, VOCABULARY, length).tolist()), max(1, length // 3))
        for length in lengths
    ]
