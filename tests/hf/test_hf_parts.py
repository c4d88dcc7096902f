"""The parts of the Hugging Face backend beside what mlx computes from the same files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oodatcaa.domain.checkpointing import with_recomputed
from oodatcaa.domain.qlora import FineTune, LrSchedule, QLoRA
from oodatcaa.errors import OodatcaaError
from tiny_model import make_tiny_data, make_tiny_model
from wrong_mask import opens_a_thought, wrong_mask

torch = pytest.importorskip("torch")
pytest.importorskip("peft")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def network(tiny: Path) -> Any:
    from oodatcaa.training.hf.setup import load_base

    return load_base(str(tiny))


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_quantised_weights_are_those_that_mlx_sees(bits: int) -> None:
    import mlx.core as mx

    from oodatcaa.training.hf.dequantize import dequantize

    weight = mx.random.normal((96, 128))
    packed, scales, biases = mx.quantize(weight, group_size=32, bits=bits)
    wanted = np.array(mx.dequantize(packed, scales, biases, group_size=32, bits=bits))
    words = torch.from_numpy(np.array(packed).view(np.int32))
    found = dequantize(words, torch.tensor(np.array(scales)), torch.tensor(np.array(biases)), bits)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6)


def test_both_frameworks_see_the_same_tokens_and_losses(
    tiny: Path, network: Any, tmp_path: Path
) -> None:
    import mlx.core as mx
    from mlx_lm import load

    from oodatcaa.training.examples import read_split, tokenize_rows
    from oodatcaa.training.hf.loss import make_batch, token_losses
    from oodatcaa.training.hf.rows import row_tokens
    from oodatcaa.training.hf.setup import load_base
    from oodatcaa.training.masks import WRONG_MASK
    from oodatcaa.training.mlx import batches
    from oodatcaa.training.mlx import loss as mlx_loss

    model, tokenizer = network
    rows = read_split(make_tiny_data(tmp_path) / "train.jsonl")
    rows += [{"text": "def f(x): return x"}]
    theirs: Any = load(str(tiny))
    completions = [{"prompt": "Write f.", "completion": "def f(): pass"}]
    for kind, mask in ((rows[:-1], True), (rows[-1:], False), (completions, True)):
        found = tokenize_rows(kind, row_tokens(tokenizer, mask_prompt=mask), 64)
        assert found == batches.tokenize(kind, theirs[1], mask_prompt=mask, max_seq_length=64)
    with pytest.raises(OodatcaaError, match="can not be tokenised"):
        tokenize_rows(rows[-1:], row_tokens(tokenizer, mask_prompt=True), 64)
    broken = load_base(str(wrong_mask(tiny, tmp_path / "broken")))[1]
    with pytest.raises(OodatcaaError) as refused:
        tokenize_rows(rows[:2], row_tokens(broken, mask_prompt=True), 64)
    assert refused.value.details == (f"example 1: {WRONG_MASK} (examples: 2)",)
    with pytest.raises(OodatcaaError) as same:
        batches.tokenize(
            rows[:2], load(str(tmp_path / "broken"))[1], mask_prompt=True, max_seq_length=64
        )
    assert same.value.details == refused.value.details
    thinks = load_base(str(opens_a_thought(tiny, tmp_path / "thinks")))[1]
    masked = tokenize_rows(rows[:2], row_tokens(thinks, mask_prompt=True), 256)
    assert masked == tokenize_rows(rows[:2], row_tokens(tokenizer, mask_prompt=True), 256)
    assert tokenize_rows(rows[:2], row_tokens(broken, mask_prompt=False), 64).items
    examples = tokenize_rows(rows[:3], row_tokens(tokenizer, mask_prompt=True), 64).items
    ours = token_losses(model, make_batch(examples, 64))
    batch = batches.make_batch(examples, 64)
    split = mlx_loss.split_head(theirs[0])
    wanted = np.array(
        mlx_loss.token_losses(split, theirs[0], batch.inputs, batch.rows, batch.targets)
    )[: len(ours)]
    mx.eval()
    np.testing.assert_allclose(ours.detach().numpy(), wanted, rtol=2e-3, atol=2e-3)


SHAPE: dict[str, Any] = {
    **{"hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 96, "vocab_size": 200},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
    **{"max_position_embeddings": 48, "tie_word_embeddings": True},
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "gemma": {},
    "gemma2": {"sliding_window": 8},
    "qwen3": {},
}


def random_network(kind: str, **options: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SHAPE, **options})
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    network.requires_grad_(False)
    return network


def two_rows() -> Any:
    from oodatcaa.training.examples import Example

    random = np.random.default_rng(0)

    def drawn(length: int) -> Example:
        return Example(tuple(random.integers(3, 200, length).tolist()), max(1, length // 3))

    return [[drawn(n) for n in row] for row in ((40, 21, 30), (17, 33, 5, 29))]


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("kind", SHAPES)
def test_packed_rows_have_the_loss_and_gradients_of_their_examples(
    kind: str, checkpoint: bool
) -> None:
    from oodatcaa.training.hf.loss import make_batch, make_packed, must_pack, token_losses
    from oodatcaa.training.hf.setup import attach_adapters, checkpoint_blocks

    params = with_recomputed(QLoRA(rank=4, num_layers=2), 2 if checkpoint else 0, 2)
    network = attach_adapters(random_network(kind, **SHAPES[kind]), params)
    for name, tensor in network.named_parameters():
        if tensor.requires_grad and "lora_" in name:
            tensor.data += 0.02
    if checkpoint:
        checkpoint_blocks(network, params)
    rows = two_rows()
    must_pack(network, rows, 96)
    network.train()
    found = []
    for batch in (make_packed(rows, 96), make_batch([e for row in rows for e in row], 96)):
        network.zero_grad()
        losses = token_losses(network, batch)
        losses.mean().backward()
        gradients = {n: p.grad.clone() for n, p in network.named_parameters() if p.requires_grad}
        found.append((losses.detach(), gradients))
    (ours, mine), (theirs, others) = found
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for name, gradient in mine.items():
        scale = float(others[name].abs().max())
        assert scale > 0
        torch.testing.assert_close(gradient, others[name], rtol=1e-3, atol=1e-4 * scale)


def test_another_example_changes_nothing_for_its_neighbours() -> None:
    from oodatcaa.training.hf.loss import make_packed, token_losses

    network = random_network("llama").eval()
    rows = two_rows()
    changed = [[two_rows()[1][1], *rows[0][1:]], rows[1]]
    with torch.inference_mode():
        before, after = (token_losses(network, make_packed(r, 96)) for r in (rows, changed))
    rest = sum(e.targets for row in (rows[0][1:], rows[1]) for e in row)
    torch.testing.assert_close(before[-rest:], after[-rest:], rtol=1e-5, atol=1e-5)


REFUSED: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 16, "conv_kernel": 4},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64, "max_position_embeddings": 96},
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_with_a_state_or_a_mask_of_its_own_is_not_packed(kind: str) -> None:
    from oodatcaa.training.hf.loss import must_pack

    network = random_network(kind, **REFUSED[kind])
    with pytest.raises(OodatcaaError, match="not what it is alone"):
        must_pack(network, two_rows(), 96)


@pytest.mark.parametrize("schedule", list(LrSchedule))
@pytest.mark.parametrize("warmup", [0, 3])
def test_learning_rates_are_those_of_mlx_lm(schedule: LrSchedule, warmup: int) -> None:
    import mlx.core as mx
    from mlx_lm.tuner.utils import build_schedule

    from oodatcaa.training.hf.setup import learning_rate
    from oodatcaa.training.mlx.setup import schedule_config

    params = QLoRA(iters=12, schedule=schedule, warmup_steps=warmup, learning_rate=1e-2)
    config = schedule_config(params)
    wanted = build_schedule(config) if config else lambda _: 1e-2
    for step in range(12):
        found = float(mx.array(wanted(mx.array(step))))
        assert learning_rate(params, step) == pytest.approx(found, abs=1e-7)


def test_dora_and_checkpointing_give_gradients(tiny: Path) -> None:
    from oodatcaa.training.examples import Example
    from oodatcaa.training.hf.loss import make_batch, token_losses
    from oodatcaa.training.hf.setup import attach_adapters, checkpoint_blocks, load_base

    batch = make_batch([Example(tuple(range(3, 40)), 10)], 64)
    found = {}
    for checkpoint in (False, True):
        torch.manual_seed(0)
        params = QLoRA(
            rank=2, num_layers=1, fine_tune_type=FineTune.DORA, keys=("self_attn.q_proj",)
        )
        model = attach_adapters(load_base(str(tiny))[0], params)
        if checkpoint:
            checkpoint_blocks(model, params.evolve(grad_checkpoint=True))
        model.train()
        token_losses(model, batch).mean().backward()
        trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        assert {name.split(".")[-3 if "lora_A" in name or "lora_B" in name else -4] for name in
                trained} >= {"q_proj"}  # fmt: skip
        found[checkpoint] = trained
    for name, gradient in found[False].items():
        torch.testing.assert_close(gradient, found[True][name])


def test_any_number_of_checkpointed_blocks_gives_the_same_gradients(tiny: Path) -> None:
    from oodatcaa.training.examples import Example
    from oodatcaa.training.hf.loss import make_batch, token_losses
    from oodatcaa.training.hf.setup import attach_adapters, checkpoint_blocks, load_base

    batch = make_batch([Example(tuple(range(3, 40)), 10)], 64)
    found = []
    for count in (0, 1, 2):
        torch.manual_seed(0)
        params = with_recomputed(QLoRA(rank=2, num_layers=2), count, 2)
        model = attach_adapters(load_base(str(tiny))[0], params)
        if count:
            checkpoint_blocks(model, params)
        calls: Counter[Any] = Counter()
        blocks = model.get_decoder().layers
        for block in blocks:
            block.input_layernorm.register_forward_hook(
                lambda module, *_, into=calls: into.update([module])
            )
        model.train()
        token_losses(model, batch).mean().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
        # Of three blocks the last two are trained; the frozen one has no gradient to compute.
        counts = [calls[block.input_layernorm] for block in blocks]
        assert counts == [1, 1 + (count > 0), 1 + (count > 1)]
    for name, gradient in found[0].items():
        for other in found[1:]:
            torch.testing.assert_close(gradient, other[name])
