"""Packed rows through mlx-lm's models: the same loss and gradients, and nobody sees a neighbour."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import TrainSpec
from oodatcaa.errors import OodatcaaError
from oodatcaa.training.mlx import setup, vector
from oodatcaa.training.mlx.batches import Batch, BatchIterator, make_batch, make_packed
from oodatcaa.training.mlx.cpu import on_cpu
from oodatcaa.training.mlx.loss import make_loss, split_head, token_losses
from oodatcaa.training.mlx.packed import must_pack, packed
from oodatcaa.training.mlx.prefix import frozen_prefix
from oodatcaa.training.mlx.recompute import recompute
from oodatcaa.training.mlx.trainer import Run
from oodatcaa.training.packing import Row, packed_batches, positions_of
from packed_models import LONGEST, SHAPES, drawn, network_of
from tiny_model import make_tiny_data, make_tiny_model


def two_rows() -> list[Row]:
    return [drawn([40, 21, 30]), drawn([17, 33, 5, 29], seed=1)]


Gradients = dict[str, mx.array]


def gradients(network: Any, loss: Callable[..., Any], batch: Batch) -> tuple[float, Gradients]:
    (value, _), found = nn.value_and_grad(network, loss)(network, *batch)
    mx.eval(value, found)
    return value.item(), dict(tree_flatten(found))


def assert_close(ours: Gradients, theirs: Gradients, share: float = 1.0) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        scale = float(mx.abs(theirs[name]).max().item().real)
        assert scale > 0, name
        assert mx.allclose(tensor, share * theirs[name], rtol=1e-3, atol=1e-4 * scale), name


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients_are_those_of_the_same_examples_unpacked(
    shape: str, eager: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector, "FEW", 0)
    network = network_of(*SHAPES[shape])
    split = split_head(network)
    rows = two_rows()
    must_pack(network, lambda tokens: split.body(network, tokens), rows, LONGEST)
    network.train()
    loss = make_loss(split, at_once=eager and on_cpu())

    alone, theirs = gradients(network, loss, make_batch([e for row in rows for e in row], LONGEST))
    together, ours = gradients(network, loss, make_packed(rows, LONGEST))

    assert together == pytest.approx(alone, rel=1e-5)
    assert_close(ours, theirs)


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("checkpointed", [0, 1, 2])
@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ("llama", two_rows()),
        ("gemma3", two_rows()),
        # Too full to be computed an example at a time: with one mask.
        ("llama", [drawn([85, 8])]),
    ],
    ids=["llama", "gemma3", "a long one"],
)
def test_with_frozen_blocks_run_before_and_blocks_computed_again(
    shape: str, rows: list[Row], checkpointed: int, eager: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vector, "FEW", 0)
    network = network_of(*SHAPES[shape])
    kinds = {type(block): type(block).__call__ for block in network.layers}
    try:
        split = split_head(network)
        must_pack(network, lambda tokens: split.body(network, tokens), rows, LONGEST)
        plain = make_loss(split)
        alone, theirs = gradients(
            network, plain, make_batch([e for row in rows for e in row], LONGEST)
        )
        if checkpointed:
            again = QLoRA(num_layers=2, grad_checkpoint=True, grad_checkpoint_layers=checkpointed)
            recompute([network], again, at_once=eager and on_cpu())
        prefix = frozen_prefix(network)
        assert prefix is not None
        network.train()
        batch = make_packed(rows, LONGEST)
        with packed(batch.owners):
            batch = batch._replace(hidden=prefix.run(network, batch.inputs))
        loss = make_loss(split, prefix=prefix, at_once=eager and on_cpu())
        together, ours = gradients(network, loss, batch)
    finally:
        for kind, call in kinds.items():
            kind.__call__ = call
    assert together == pytest.approx(alone, rel=1e-5)
    assert_close(ours, theirs)


def test_accumulated_batches_are_one_large_one() -> None:
    network = network_of(*SHAPES["qwen2"])
    split = split_head(network)
    data = drawn([40, 21, 30, 17, 33, 5, 29, 60, 61, 12])
    must_pack(network, lambda tokens: split.body(network, tokens), two_rows(), LONGEST)
    loss = make_loss(split)
    stream = BatchIterator(3, window=2, packing=True)(data, 2, LONGEST, loop=True)
    parts = [next(stream), next(stream)]
    assert sum(float(part.weights.sum().item().real) for part in parts) == sum(
        example.targets for example in data
    ), "the two batches of the test are to be one epoch"
    ours: Gradients = {}
    for part in parts:
        _, found = gradients(network, loss, part)
        ours = {name: ours.get(name, mx.array(0.0)) + g / 2 for name, g in found.items()}
    _, theirs = gradients(network, loss, make_batch(data, LONGEST))
    assert_close(ours, theirs)


@pytest.mark.parametrize("shape", SHAPES)
def test_another_example_changes_nothing_for_its_neighbours(shape: str) -> None:
    network = network_of(*SHAPES[shape], trained=0)
    split = split_head(network)
    rows = two_rows()
    must_pack(network, lambda tokens: split.body(network, tokens), rows, LONGEST)
    changed = [[drawn([40], seed=9)[0], *rows[0][1:]], rows[1]]

    def losses(rows: list[Row]) -> np.ndarray[Any, Any]:
        batch = make_packed(rows, LONGEST)
        with packed(batch.owners):
            found = token_losses(split, network, batch.inputs, batch.rows, batch.targets)
        return np.array(found)[: sum(e.targets for row in rows for e in row)]

    before, after = losses(rows), losses(changed)
    own = rows[0][0].targets
    assert np.abs(after[:own] - before[:own]).max() > 0.1
    assert np.array_equal(before[own:], after[own:])


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_real_runs_first_loss_is_that_of_its_examples_alone(
    tmp_path: Path, checkpoint: bool
) -> None:
    params = QLoRA(
        rank=4, num_layers=2, batch_size=2, iters=1, max_seq_length=128, packing=True,
        grad_checkpoint=checkpoint,
    )  # fmt: skip
    model = make_tiny_model(tmp_path / "model")
    spec = TrainSpec(model=str(model), data_dir=str(make_tiny_data(tmp_path / "data")),
                     params=params)  # fmt: skip
    (tmp_path / "run").mkdir()
    run = Run(tmp_path / "run", spec, None)
    result = run.train()
    assert result.failure is None, result.failure
    rows = next(packed_batches(run.examples.items, 128, 2, params.seed))[0]
    assert min(map(len, rows)) > 1
    network, _ = setup.load_base(str(model))
    batch = make_batch([example for row in rows for example in row], 128)
    wanted, count = make_loss(split_head(network), gradient=False)(network, *batch)
    assert result.trained_tokens == count.item()
    assert result.train_losses[0].loss == pytest.approx(float(wanted.item().real), rel=1e-5)


def test_a_validation_is_not_packed() -> None:
    data = drawn([10, 20, 30])
    assert [b.owners for b in BatchIterator(0, packing=True)(data, 2, LONGEST)] == [None, None]
    assert next(BatchIterator(0)(data, 2, LONGEST, loop=True)).owners is None


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "counts the length": (
        "llama",
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 48},
        "depends on the length",
    ),
    "learned positions": (
        "gpt2",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_ctx": 256, "n_positions": 256}
        | {"layer_norm_epsilon": 1e-5},
        "differs",
    ),
    "a state": (
        "mamba",
        {"state_size": 16, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True}
        | {"time_step_rank": 4},
        "differs",
    ),
    "a mask of its own": ("gemma2", {"query_pre_attn_scalar": 16.0}, "differs"),
}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("why", REFUSED)
def test_a_model_that_sees_across_examples_is_refused(why: str, half: bool) -> None:
    kind, options, words = REFUSED[why]
    network = network_of(kind, options, trained=0)
    if half:
        network.set_dtype(mx.bfloat16)
    was = network.training
    with pytest.raises(OodatcaaError, match=words) as caught:
        must_pack(network, network, two_rows(), LONGEST)
    assert caught.value.code == "train.bad_params"
    assert network.training == was


@pytest.mark.parametrize("shape", SHAPES)
def test_half_precision_is_not_taken_for_seeing_across(shape: str) -> None:
    network = network_of(*SHAPES[shape], trained=0)
    network.set_dtype(mx.bfloat16)
    must_pack(network, network, two_rows(), LONGEST)


def test_a_row_is_as_long_as_what_it_holds() -> None:
    rows = two_rows()
    batch = make_packed(rows, LONGEST)
    longest = max(sum(map(positions_of, row)) for row in rows)
    assert batch.inputs.shape == (2, min(LONGEST, -(-longest // 32) * 32))


def test_a_packed_run_names_the_way_in_which_its_attention_is_computed(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Else a run that began with whole rows under a mask could go on with other last bits."""
    place = tmp_path_factory.mktemp("named")
    model, data = make_tiny_model(place / "model"), make_tiny_data(place / "data", 12)
    paths = []
    for packing in (False, True):
        params = QLoRA(
            rank=4, num_layers=1, batch_size=1, max_seq_length=128, iters=1, packing=packing
        )
        spec = TrainSpec(model=str(model), data_dir=str(data), params=params)
        folder = place / str(packing)
        folder.mkdir()
        run = Run(folder, spec, None)
        run.run()
        paths.append(run.loss_path)
    assert paths[1] == (f"{paths[0]}, packed rows in blocks" if on_cpu() else paths[0])
