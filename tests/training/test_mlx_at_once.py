"""What is computed outside of MLX's graph equals what MLX computes in it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.activations import swiglu

from adapted_model import adapted
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.training.examples import Example
from oodatcaa.training.identity import parameter_facts
from oodatcaa.training.mlx import vector
from oodatcaa.training.mlx.attention import additive, attention
from oodatcaa.training.mlx.batches import make_batch
from oodatcaa.training.mlx.cpu import hold_dense, on_cpu, speed_up
from oodatcaa.training.mlx.head import FrozenHead, frozen_head
from oodatcaa.training.mlx.loss import WHOLE, make_loss, split_head
from oodatcaa.training.mlx.prefix import frozen_prefix
from oodatcaa.training.mlx.recompute import recompute
from packed_models import network_of
from tiny_model import make_tiny_model

pytestmark = pytest.mark.skipif(not on_cpu(), reason="the measures are for MLX's CPU device")


SCALED = {
    "logits_scaling": 4.0, "attention_multiplier": 0.25, "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5, "attention_bias": False, "mlp_bias": False,
}  # fmt: skip


def normal(*shape: int, seed: int = 0) -> mx.array:
    values: mx.array = mx.random.normal(shape, key=mx.random.key(seed))
    return values


def close(ours: mx.array, theirs: mx.array, tolerance: float = 2e-5) -> bool:
    scale = float(mx.abs(theirs).max().item().real)
    assert scale > 0
    return float(mx.abs(ours - theirs).max().item().real) <= tolerance * scale


def test_exponentials_are_exact_and_masked_scores_become_zero() -> None:
    x = np.concatenate([np.linspace(-80, 80, 4001), [-1e9, -np.inf]]).astype(np.float32)
    found = np.array(vector.exp_of(mx.array(x)))
    np.testing.assert_allclose(found[:-2], np.exp(x[:-2].astype(np.float64)), rtol=3e-7)
    assert found[-2:].tolist() == [0.0, 0.0]


def test_an_array_that_is_not_in_rows_is_copied_not_scrambled() -> None:
    x = normal(5, 7)
    ours = vector.exp_of(-(x.T))
    assert close(ours, mx.exp(-x.T))


def test_swiglu_and_its_gradients() -> None:
    gate, x, weight = normal(40, 24), normal(40, 24, seed=1), normal(40, 24, seed=2)

    def gradients(function: Any) -> Any:
        found: Any = mx.grad(lambda g, u: (function(g, u) * weight).sum(), argnums=(0, 1))(gate, x)
        return found

    both: Any = (vector.swiglu(gate, x), swiglu(gate, x))
    assert close(*both)
    for ours, theirs in zip(gradients(vector.swiglu), gradients(swiglu), strict=True):
        assert close(ours, theirs)


@pytest.mark.parametrize("mask", [None, "causal", "boolean", "additive", "of each row"])
@pytest.mark.parametrize("heads", [(6, 2), (4, 4), (3, 1)])
@pytest.mark.parametrize("length", [9, 5])
@pytest.mark.parametrize("piece", [None, 25, 200], ids=["whole", "some rows", "some heads"])
def test_attention_and_its_gradients(
    mask: str | None,
    heads: tuple[int, int],
    length: int,
    piece: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if piece is not None:
        monkeypatch.setattr(vector, "PIECE", piece)
    q, k, v = (
        normal(2, heads[0], length, 8),
        normal(2, heads[1], 9, 8, seed=1),
        normal(2, heads[1], 9, 4),
    )
    seen = mx.tril(mx.ones((length, 9), mx.bool_), k=2)
    given: Any = mask
    if mask == "boolean":
        given = seen
    elif mask == "additive":
        given = mx.where(seen, mx.array(0.0), mx.array(-1e9))
    elif mask == "of each row":
        given = normal(2, 1, length, 9, seed=4)
    weight = normal(*q.shape[:-1], 4, seed=3)

    def stock(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        out: mx.array = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask=given)
        return out

    def ours(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return attention(q, k, v, 0.3, additive(given, length, 9))

    assert close(ours(q, k, v), stock(q, k, v))
    gradient = [
        mx.grad(lambda *a, f=f: (f(*a) * weight).sum(), argnums=(0, 1, 2))(q, k, v)
        for f in (ours, stock)
    ]
    for mine, theirs in zip(*gradient, strict=True):
        assert close(mine, theirs)


LAYERS = {
    "linear": lambda: nn.Linear(64, 300, bias=False),
    "linear with bias": lambda: nn.Linear(64, 300),
    "embedding": lambda: nn.Embedding(300, 64),
    "4-bit linear": lambda: nn.QuantizedLinear.from_linear(nn.Linear(64, 300, bias=False), 32, 4),
    "8-bit embedding": lambda: nn.QuantizedEmbedding.from_embedding(nn.Embedding(300, 64), 32, 8),
}


@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize("way", ["graph", "at once", "at once, nothing held"])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_heads_loss_and_gradient_are_those_of_cross_entropy(
    kind: str, way: str, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Chunks of 16 rows, so that 50 rows are four of them; tiles of 32 x 64 and 18 x 113.
    monkeypatch.setattr("oodatcaa.training.mlx.head.CHUNK_BYTES", 1)
    monkeypatch.setattr("oodatcaa.training.mlx.head.LEAST_ROWS", 16)
    monkeypatch.setattr("oodatcaa.training.mlx.head.MOST_TILE_ROWS", 32)
    monkeypatch.setattr("oodatcaa.training.formulas.TILE_BYTES", 32 * 64 * 4)
    if way == "at once, nothing held":
        monkeypatch.setattr("oodatcaa.training.mlx.head.HELD_HEAD_BYTES", 0)
    eager = way != "graph"
    layer = LAYERS[kind]()
    layer.freeze()
    # A large spread puts a row's highest logit far above those of the tiles before it.
    hidden, targets = spread * normal(50, 64), mx.arange(50) * 5 % 300
    weights = mx.where(mx.arange(50) < 47, 1.0, 0.0)
    head = frozen_head(layer, dense=eager)
    assert head is not None

    def stock(h: mx.array) -> mx.array:
        logits = layer.as_linear(h) if "mbedding" in type(layer).__name__ else layer(h)
        total: mx.array = (nn.losses.cross_entropy(logits, targets) * weights).sum()
        return total

    with vector.at_once() if eager else nullcontext():
        ours, mine = mx.value_and_grad(lambda h: head.total(h, targets, weights))(hidden)
        losses = head.losses(hidden, targets)
    theirs, other = mx.value_and_grad(stock)(hidden)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    assert close(mine, other, 1e-4)
    assert (losses * weights).sum().item() == pytest.approx(theirs.item(), rel=1e-5)


def test_half_precision_goes_its_own_way_also_where_layers_are_evaluated_as_they_are_met() -> None:
    """On Metal and CUDA evaluations open `at_once()` too."""
    for layer in (nn.Linear(64, 300, bias=False), LAYERS["4-bit linear"]()):
        layer.freeze()
        layer.set_dtype(mx.bfloat16)
        hidden, targets = normal(50, 64).astype(mx.bfloat16), mx.arange(50)
        head = frozen_head(layer, dense=False)
        assert head is not None
        with vector.at_once():
            found = head.losses(hidden, targets)
        logits = layer(hidden).astype(mx.float32)
        assert close(found, nn.losses.cross_entropy(logits, targets), 0.02)


def test_a_vocabulary_part_that_a_bias_rules_out_leaves_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("oodatcaa.training.formulas.TILE_BYTES", 50 * 64 * 4)
    layer = nn.Linear(64, 300)
    layer.bias = mx.where(mx.arange(300) < 140, -mx.inf, 0.0)
    layer.freeze()
    head = frozen_head(layer, dense=True)
    assert head is not None
    hidden, targets = normal(50, 64), 150 + mx.arange(50)
    with vector.at_once():
        value, gradient = mx.value_and_grad(lambda h: head.total(h, targets, mx.ones(50)))(hidden)
    assert close(value, nn.losses.cross_entropy(layer(hidden), targets).sum())
    assert mx.isfinite(gradient).all().item()


def test_a_certain_token_costs_nothing_not_less() -> None:
    layer = nn.Linear(64, 9000, bias=False)
    layer.freeze()
    head = frozen_head(layer, dense=True)
    assert head is not None
    targets = mx.arange(0, 9000, 140)
    weight = layer.weight[targets]
    hidden = 300 * weight / (weight * weight).sum(axis=-1, keepdims=True)
    with vector.at_once():
        losses = head.losses(hidden, targets)
    found = np.array(losses)
    assert 0.0 <= found.min() <= found.max() < 1e-4


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("eager", [True, False])
def test_the_head_never_holds_the_logits_of_the_whole_batch(
    eager: bool, gradient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oodatcaa.training.mlx.head.CHUNK_BYTES", 1)
    layer = nn.Linear(32, 40_000, bias=False)
    layer.freeze()
    head = FrozenHead(layer, dense=eager)
    rows = 2048
    hidden, targets, weights = normal(rows, 32), mx.zeros((rows,), mx.int32), mx.ones((rows,))
    mx.eval(layer.parameters(), hidden, targets, weights)
    logits = rows * 40_000 * 4
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    with vector.at_once() if eager else nullcontext():
        if gradient:
            mx.eval(mx.value_and_grad(lambda h: head.total(h, targets, weights))(hidden))
        else:
            mx.eval(head.losses(hidden, targets))
    # Stock cross entropy needs four times the logits. In a graph, MLX's CPU device holds some ten
    # buffers of a chunk's logits, whatever the number of rows; how many is its scheduler's choice.
    assert mx.get_peak_memory() - before < (0.03 * logits if eager else 24 * logits / 64)


def test_a_large_quantised_head_is_never_dense_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oodatcaa.training.mlx.head.HELD_HEAD_BYTES", 0)
    layer = nn.QuantizedLinear.from_linear(nn.Linear(512, 40_000, bias=False), 64, 4)
    layer.freeze()
    head = FrozenHead(layer, dense=True)
    hidden, targets, weights = normal(64, 512), mx.arange(64), mx.ones((64,))
    mx.eval(layer.parameters(), hidden, targets, weights)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    with vector.at_once():
        mx.eval(mx.value_and_grad(lambda h: head.total(h, targets, weights))(hidden))
    assert mx.get_peak_memory() - before < 0.4 * 40_000 * 512 * 4


def test_a_trace_keeps_one_mask_for_all_its_blocks() -> None:
    length, peaks = 1024, []
    batch = make_batch([Example(tuple(n % 180 + 3 for n in range(length)), 1)], length)
    for blocks in (2, 8):
        network = network_of("llama", {"num_hidden_layers": blocks}, trained=blocks)
        step = nn.value_and_grad(network, make_loss(split_head(network), at_once=True))
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(step(network, *batch))
        peaks.append(mx.get_peak_memory() - before)

    scores = 4 * 4 * length * length  # of one block's four heads
    # Six blocks' scores, and of what is 64 to 96 wide 40 copies; not six masks of a quarter.
    assert peaks[1] - peaks[0] < 6 * (scores + 40 * 64 * length * 4)
    assert additive("causal", 8, 8) is not additive("causal", 9, 9)


def test_a_trained_or_unknown_output_layer_has_no_shortcut() -> None:
    class Capped(nn.Linear):  # type: ignore[misc]
        pass

    assert frozen_head(nn.Linear(8, 8), dense=True) is None
    capped = Capped(8, 8)
    capped.freeze()
    assert frozen_head(capped, dense=True) is None


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def test_a_step_that_starts_behind_the_frozen_blocks_is_the_same_step(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tiny model's tensors would all be below the size from which it pays.
    monkeypatch.setattr("oodatcaa.training.mlx.vector.FEW", 1)
    model = adapted(tiny, 1)
    split = split_head(model)
    assert split.frozen is not None
    prefix = frozen_prefix(model)
    assert prefix is not None
    assert prefix.first == len(model.layers) - 1
    examples = [Example(tuple(range(3, 40)), 10), Example(tuple(range(60, 90)), 1)]
    batch = make_batch(examples, 128)
    quick = batch._replace(hidden=prefix.run(model, batch.inputs))

    def step(loss: Any, values: Any) -> tuple[float, dict[str, mx.array]]:
        (value, count), gradients = nn.value_and_grad(model, loss)(model, *values)
        assert count.item() == 27 + 29
        return value.item(), dict(tree_flatten(gradients))

    stock_loss, stock = step(make_loss(WHOLE), batch)
    for at_once in (True, False):
        ours, mine = step(make_loss(split, prefix=prefix, at_once=at_once), quick)
        assert ours == pytest.approx(stock_loss, rel=1e-4)
        assert stock.keys() == mine.keys()
        for name, gradient in stock.items():
            assert close(mine[name], gradient, 1e-3), name


@pytest.mark.parametrize("again", [False, True], ids=["kept", "again"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("granite", SCALED),
        ("gemma2", {"query_pre_attn_scalar": 16.0, "final_logit_softcapping": 0.5}),
    ],
    ids=["scaled", "capped"],
)
def test_the_loss_of_logits_that_a_model_changes(
    kind: str, options: dict[str, Any], masked: bool, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some tiles, of which the last one is not full.
    monkeypatch.setattr("oodatcaa.training.mlx.head.TILE_BYTES", 4 * 300 * 20)
    tokens = [tuple(range(3, 40)), tuple(range(60, 90))]
    batch = make_batch([Example(one, 10 if masked else 1) for one in tokens], 128)

    def step(*, at_once: bool) -> dict[str, mx.array]:
        network = network_of(kind, options, trained=2)
        split, block = split_head(network), type(network.layers[0])
        assert not split.sparse
        stock = block.__call__
        if again:
            params = QLoRA(num_layers=2, grad_checkpoint=True)
            recompute([network], params, at_once=at_once)
        network.train()
        try:
            loss = make_loss(split, at_once=at_once)
            (value, _), gradients = nn.value_and_grad(network, loss)(network, *batch)
            return {"loss": value, **dict(tree_flatten(gradients))}
        finally:
            block.__call__ = stock

    ours = step(at_once=True)
    for name, found in step(at_once=False).items():
        assert close(ours[name], found, 1e-3), name


def test_a_large_matrix_is_multiplied_with_in_pieces(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch([Example(tuple(range(3, 40)), 10), Example(tuple(range(60, 90)), 1)], 128)

    def step(model: Any) -> dict[str, mx.array]:
        loss = make_loss(WHOLE, at_once=True)
        (value, _), gradients = nn.value_and_grad(model, loss)(model, *batch)
        return {"loss": value, **dict(tree_flatten(gradients))}

    whole = step(adapted(tiny, 2))
    monkeypatch.setattr("oodatcaa.training.mlx.stored.PIECE_BYTES", 5 * 4 * 64)
    for name, found in step(adapted(tiny, 2)).items():
        assert close(found, whole[name], 1e-4), name


def test_looking_at_a_model_with_a_large_output_layer_takes_little() -> None:
    class Model(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Embedding(8, 512)
            self.lm_head = nn.Linear(512, 60_000, bias=False)

        def __call__(self, tokens: mx.array) -> mx.array:
            logits: mx.array = self.lm_head(self.model(tokens))
            return logits

    model = Model()
    nn.quantize(model, 64, 4)
    model.freeze()
    speed_up(model)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    assert split_head(model).sparse
    held = 60_000 * 512 * 4
    assert mx.get_peak_memory() - before < 1.6 * held, "the held one, and pieces"


@pytest.mark.parametrize("piece", [16 << 20, 5 * 4 * 64])
@pytest.mark.parametrize("at_once", [True, False])
def test_weights_that_are_held_change_no_bit(
    tiny: Path, at_once: bool, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oodatcaa.training.mlx.stored.PIECE_BYTES", piece)
    batch = make_batch([Example(tuple(range(3, 40)), 10), Example(tuple(range(60, 90)), 1)], 128)
    found = []
    for held in ("", "rows", "columns"):
        model = adapted(tiny, 2)
        if held:
            hold_dense(model, by_columns=held == "columns")
            kept = [
                (module, module.stored.held)
                for block in model.layers
                for module in block.modules()
                if "scales" in module
            ]
            assert kept
            for module, matrix in kept:
                assert matrix.nbytes == 4 * module["scales"].size * module.group_size
            hold_dense(model)
            assert all(module.stored.held is matrix for module, matrix in kept), "held once"
        loss = make_loss(split_head(model), at_once=at_once)
        (value, _), gradients = nn.value_and_grad(model, loss)(model, *batch)
        found.append((value.item(), {n: np.array(g) for n, g in tree_flatten(gradients)}))
    (one, plain), *others = found
    assert parameter_facts(QLoRA(dense_weights=True)) == parameter_facts(QLoRA()), "may change"
    for other, dense in others:
        assert one == other
        for name, gradient in plain.items():
            np.testing.assert_array_equal(dense[name], gradient)


def test_a_model_with_adapters_on_all_blocks_has_no_frozen_prefix(tiny: Path) -> None:
    assert frozen_prefix(adapted(tiny, -1)) is None


def test_a_model_whose_blocks_do_more_than_pass_one_array_on_is_not_split() -> None:
    class Block(nn.Module):  # type: ignore[misc]
        def __init__(self, trained: bool) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.count = 0
            if not trained:
                self.freeze()

        def __call__(self, x: mx.array, extra: list[int]) -> mx.array:
            extra.append(1)
            out: mx.array = self.inner(x) * len(extra)
            return out

    class Odd(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = [Block(False), Block(True)]

        def __call__(self, tokens: mx.array) -> mx.array:
            x = tokens[..., None] * mx.ones((4,))
            extra: list[int] = []
            for block in self.layers:
                x = block(x, extra)
            return x

    assert frozen_prefix(Odd()) is None


def test_only_what_may_be_traced_is_copied() -> None:
    x = mx.random.normal((4, 4))

    assert vector.cut(x) is not x
    with vector.at_once(traced=False):
        assert vector.cut(x) is x
        with vector.at_once():
            assert vector.cut(x) is not x
        assert vector.cut(x) is x
    assert vector.cut(x) is not x
