"""What checkpointed blocks leave in memory where the CPU's layers evaluate as they are met."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.training.mlx import vector
from oodatcaa.training.mlx.batches import make_batch, make_packed
from oodatcaa.training.mlx.cpu import on_cpu
from oodatcaa.training.mlx.loss import make_loss, split_head
from oodatcaa.training.mlx.packed import route
from oodatcaa.training.mlx.parallel import divided_gradient
from oodatcaa.training.mlx.recompute import recompute
from oodatcaa.training.mlx.team import make_team
from packed_models import drawn, network_of

pytestmark = pytest.mark.skipif(not on_cpu(), reason="layers evaluate so on the CPU alone")
BLOCKS, LENGTH = 8, 256
WIDE: dict[str, Any] = {"num_hidden_layers": BLOCKS, "intermediate_size": 256}
YARN = {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}
"""A rotary embedding that holds an array which is no parameter."""


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_NUM_THREADS", "2")


def peak(again: int, rows: int, options: dict[str, Any], *, packing: bool = False) -> int:
    """Bytes above the model, of the second of two steps with so many blocks computed again."""
    network = network_of("llama", WIDE | options, trained=BLOCKS, bits=4)
    kind = type(network.layers[0])
    stock = kind.__call__
    team = make_team(network, rows)
    assert (team is None) is (rows == 1)
    try:
        loss = make_loss(split_head(network), at_once=True)
        if again:
            count = again if again < BLOCKS else None
            params = QLoRA(num_layers=-1, grad_checkpoint=True, grad_checkpoint_layers=count)
            recompute([network, *(team.networks if team else ())], params, at_once=True)
        if team is not None:
            loss = divided_gradient(team, loss, None)
        network.train()
        batch = make_batch(drawn([LENGTH] * rows), LENGTH)
        if packing:
            route(network)
            batch = make_packed([drawn([LENGTH - 8, 8])] * rows, LENGTH)
        step = nn.value_and_grad(network, loss)
        for _ in range(2):
            mx.reset_peak_memory()
            before = mx.get_active_memory()
            (value, _), gradient = step(network, *batch)
            mx.eval(value, gradient)
            del value, gradient
        return mx.get_peak_memory() - before
    finally:
        kind.__call__ = stock
        if team is not None:
            team.close()


@pytest.mark.parametrize("options", [{}, YARN], ids=["plain", "yarn"])
def test_blocks_computed_again_are_not_kept(options: dict[str, Any]) -> None:
    none, half, every = (peak(count, 1, options) for count in (0, BLOCKS // 2, BLOCKS))
    assert half < 0.75 * none
    assert every < 0.4 * none


@pytest.mark.parametrize("again", [BLOCKS // 2, BLOCKS], ids=["half", "every"])
def test_nor_by_a_second_thread(again: int) -> None:
    """Two rows hold at most what each holds alone; how far threads overlap is the machine's."""
    one, two = (peak(again, rows, {}) for rows in (1, 2))
    assert two < 2.1 * one


def test_the_mask_of_packed_rows_is_not_differentiated() -> None:
    plain, packed = (peak(BLOCKS, 1, {}, packing=packing) for packing in (False, True))
    assert packed < 1.2 * plain


class _Adding(nn.Module):  # type: ignore[misc]
    """Its result depends on what it wrote into its argument before."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def __call__(self, x: mx.array, seen: list[mx.array]) -> mx.array:
        seen.append(x)
        result: mx.array = x + self.layer(x) * len(seen)
        return result


class _Chain(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.layers = [_Adding(), _Adding()]

    def __call__(self, x: mx.array) -> mx.array:
        seen: list[mx.array] = []
        for layer in self.layers:
            x = layer(x, seen)
        return x + sum(seen)


def test_a_block_that_writes_into_its_arguments_is_called_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    network, x = _Chain(), mx.random.normal((3, 8), key=mx.random.key(1))
    stock = _Adding.__call__

    def gradient() -> list[mx.array]:
        with vector.at_once():
            found = nn.value_and_grad(network, lambda x: network(x).square().sum())(x)[1]
        return [array for _, array in tree_flatten(found)]

    before = gradient()
    try:
        recompute([network], QLoRA(num_layers=-1, grad_checkpoint=True), at_once=True)
        after = gradient()
        assert "what a _Adding computes is kept" in capsys.readouterr().out
    finally:
        _Adding.__call__ = stock  # type: ignore[method-assign]
    assert all(mx.allclose(a, b) for a, b in zip(before, after, strict=True))
