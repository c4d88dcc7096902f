"""Architectures that name things in their own way: estimate and worker read them alike."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.errors import OodatcaaError
from oodatcaa.training.estimate import estimate_training, read_shape
from oodatcaa.training.examples import Example
from oodatcaa.training.mlx.batches import make_batch
from oodatcaa.training.mlx.loss import WHOLE, make_loss, split_head

GEMMA3 = {
    "model_type": "gemma3_text",
    "hidden_size": 64,
    "num_hidden_layers": 6,  # the last one of six sees everything
    "intermediate_size": 96,
}
ROPE = {"rope_theta": 10000.0}
LLAMA = {
    **{"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 192},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, **ROPE},
}
NORM = {"layer_norm_eps": 1e-5, "layer_norm_epsilon": 1e-5}

CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # The published ones leave heads and vocabulary to mlx-lm's defaults: 8 heads of 256, 4 of keys.
    "gemma3": (
        {"text_config": GEMMA3, "vocab_size": 192},
        {"num_heads": 8, "num_kv_heads": 4, "head_dim": 256, "vocab_size": 192},
    ),
    "mistral3": (
        {"text_config": {**LLAMA, "model_type": "mistral"}},
        {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "tied_embeddings": False},
    ),
    "internlm2": (LLAMA, {"num_heads": 4, "tied_embeddings": False, "dense_logits": False}),
    "exaone": (
        {**LLAMA, **NORM, "num_layers": 2},
        {"num_layers": 2, "num_heads": 4, "dense_logits": False},
    ),
    "openelm": (
        {"model_dim": 64, "num_transformer_layers": 2, "head_dim": 16, "vocab_size": 192}
        | {"num_query_heads": [2, 4], "num_kv_heads": [1, 2], "ffn_multipliers": [1.0, 2.0]}
        | {"ffn_dim_divisor": 32},
        {"num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "dense_logits": True},
    ),
    "mamba": (
        {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 192}
        | {"state_size": 8, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True}
        | {"time_step_rank": 4},
        {"num_heads": 1, "vocab_size": 192, "dense_logits": True},
    ),
    "gpt_neox": (
        {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 192}
        | {"max_position_embeddings": 64, "rotary_emb_base": 10000, "rotary_pct": 0.25, **NORM},
        {"num_heads": 4, "dense_logits": True},
    ),
    "minicpm": (
        {**LLAMA, "dim_model_base": 32, "scale_depth": 1.4, "scale_emb": 12.0},
        {"dense_logits": True},
    ),
    # Its norms are over all heads together.
    "olmo2": (LLAMA, {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16}),
    # A soft cap that the configuration need not name.
    "gemma2": (
        {**LLAMA, "head_dim": 16, "query_pre_attn_scalar": 16.0},
        {"dense_logits": True, "capped_logits": True, "changed_logits": True},
    ),
    "hunyuan": (
        {**LLAMA, "attention_bias": False, "moe_topk": 2, "num_experts": 4, "num_shared_expert": 1}
        | {"use_mixed_mlp_moe": True, "use_qk_norm": True, "use_cla": False, "cla_share_factor": 2}
        | {"moe_intermediate_size": [32, 48]}
        | {"rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0}},
        {"intermediate_size": 96},  # two experts of 48
    ),
}


def network_of(kind: str) -> Any:
    source = importlib.import_module(f"mlx_lm.models.{kind}")
    config = json.loads(json.dumps(CONFIGS[kind][0]))  # mlx-lm writes into a nested one
    mx.random.seed(1)
    return source.Model(source.ModelArgs.from_dict({"model_type": kind, **config}))


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_model_s_shape_is_read_and_the_loss_takes_what_the_estimate_says(
    kind: str, tmp_path: Path
) -> None:
    config, expected = CONFIGS[kind]
    network = network_of(kind)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **config}))
    mx.save_safetensors(
        str(tmp_path / "model.safetensors"), dict(tree_flatten(network.parameters()))
    )

    shape = read_shape(tmp_path)

    assert {key: getattr(shape, key) for key in expected} == expected
    assert shape.num_layers == len(network.layers)
    assert len(shape.blocks) == shape.num_layers
    assert shape.dense_logits is not split_head(network).sparse
    assert estimate_training(shape, QLoRA()).total_bytes > shape.weight_bytes


def test_pictures_and_sound_count_where_they_are_loaded(tmp_path: Path) -> None:
    config = CONFIGS["gemma3"][0]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", **config}))
    tensors = dict(tree_flatten(network_of("gemma3").parameters()))
    alone = tmp_path / "model.safetensors"
    mx.save_safetensors(str(alone), tensors)
    before = read_shape(tmp_path)
    tower = {f"vision_tower.layers.{place}.fc1.weight": mx.zeros((512, 512)) for place in (0, 1)}
    mx.save_safetensors(str(alone), {**tensors, **tower})

    found = read_shape(tmp_path)

    assert found == before.evolve(other_parameters=2 * 512 * 512)
    for device, more in (("cpu", 0), ("torch-cpu", 4 * 2 * 512 * 512)):
        ours, without = (
            estimate_training(shape, QLoRA(), device=device) for shape in (found, before)
        )
        assert ours.total_bytes - without.total_bytes == more

    mx.save_safetensors(str(alone), tower)
    with pytest.raises(OodatcaaError, match="hold no language model"):
        read_shape(tmp_path)


@pytest.mark.parametrize(
    ("names", "dense"),
    [(["wte", "h.0.mlp.c_fc", "h.1.mlp.c_fc"], False), (["gpt_neox.embed_in", "embed_out"], True)],
    ids=["gpt2", "gpt-neox"],
)
def test_published_names_are_those_of_mlx_lm_but_for_what_it_puts_before(
    names: list[str], dense: bool, tmp_path: Path
) -> None:
    config = {"model_type": "x", "n_embd": 8, "n_layer": 2, "n_head": 2, "vocab_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = {f"{name}.weight": mx.zeros((16, 8)) for name in names}
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors)

    shape = read_shape(tmp_path)

    assert (shape.dense_logits, shape.changed_logits) == (dense, False)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"num_experts_per_tok": 0, "moe_intermediate_size": 0}, {"intermediate_size": 96}),
        ({"num_key_value_heads": [0, 2]}, {"num_kv_heads": 2}),
    ],
)
def test_blocks_without_experts_or_heads_of_keys_have_none(
    options: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    config = {"model_type": "llama", **LLAMA, **options}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = dict(tree_flatten(network_of("internlm2").parameters()))
    mx.save_safetensors(str(tmp_path / "model.safetensors"), tensors)

    shape = read_shape(tmp_path)

    assert {key: getattr(shape, key) for key in expected} == expected


@pytest.mark.parametrize("kind", ["gemma3", "mistral3", "internlm2"])
def test_targets_alone_have_the_loss_and_gradients_of_all_logits(kind: str) -> None:
    network = network_of(kind)
    network.freeze()
    linear_to_lora_layers(network, 1, {"rank": 4, "scale": 2.0, "dropout": 0.0})
    for name, module in network.named_modules():
        if "lora_b" in module:  # zero at first, and then nothing of lora_a has a gradient
            module.lora_b = mx.random.normal(module.lora_b.shape, key=mx.random.key(len(name)))
    batch = make_batch([Example(tuple(range(3, 40)), 20), Example(tuple(range(60, 90)), 9)], 64)
    found = []
    for split in (split_head(network), WHOLE):
        (loss, _), gradients = nn.value_and_grad(network, make_loss(split))(network, *batch)
        found.append((loss.item(), dict(tree_flatten(gradients))))
    (sparse, ours), (whole, theirs) = found

    assert sparse == pytest.approx(whole, rel=1e-5)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert mx.allclose(ours[name], gradient, rtol=1e-3, atol=1e-6).item(), name
