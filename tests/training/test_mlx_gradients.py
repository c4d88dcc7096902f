"""Gradients are those of the loss that was computed: with dropout, of whatever layers there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_map

from oodatcaa.training.mlx.batches import Batch, make_batch
from oodatcaa.training.mlx.cpu import on_cpu
from packed_models import drawn, network_of, step_loss

pytestmark = pytest.mark.skipif(not on_cpu(), reason="layers evaluate at once on the CPU alone")

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "full": ("llama", {}),
    # Every token to both experts: nothing jumps while weights change a little.
    "experts": ("mixtral", {"num_local_experts": 2, "num_experts_per_tok": 2}),
}
Step = Callable[[Any], tuple[float, Any]]


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_NUM_THREADS", "2")


def made(
    kind: str, *, at_once: bool, again: bool, rows: int
) -> tuple[Any, Step, Callable[[], None]]:
    """A network, a step of it from one random state, and what ends it."""
    name, options = MODELS[kind]
    full = kind == "full"
    # All weights are trained without adapters, which alone drop anything.
    network = network_of(name, options, trained=0 if full else 3, dropout=0.4)
    if full:
        for layer in network.layers:
            layer.unfreeze()
    block = type(network.layers[0])
    stock = block.__call__
    # Full fine-tuning keeps a batch in one part.
    loss, team = step_loss(network, 1 if full else rows, at_once=at_once, again=again)
    batch: Batch = make_batch(drawn([24] * rows), 32)
    value_and_grad = nn.value_and_grad(network, loss)

    def step(trained: Any) -> tuple[float, Any]:
        network.update(trained)
        mx.random.seed(3)
        (value, _), gradient = value_and_grad(network, *batch)
        mx.eval(value, gradient)
        found: float = value.item()
        return found, gradient

    def end() -> None:
        block.__call__ = stock
        if team is not None:
            team.close()

    return network, step, end


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("again", [False, True], ids=["kept", "again"])
@pytest.mark.parametrize("at_once", [False, True], ids=["in a graph", "at once"])
@pytest.mark.parametrize("kind", MODELS)
def test_the_loss_changes_as_its_gradient_says(
    kind: str, at_once: bool, again: bool, rows: int
) -> None:
    network, step, end = made(kind, at_once=at_once, again=again, rows=rows)
    try:
        start = tree_map(lambda array: mx.array(array), network.trainable_parameters())
        value, gradient = step(start)
        assert step(start)[0] == value
        length = sum(float(g.square().sum().item()) for g in _leaves(gradient)) ** 0.5
        size = 2e-2 / length

        def moved(way: float) -> float:
            return step(tree_map(lambda a, g: a + way * size * g, start, gradient))[0]

        slope = (moved(0.5) - moved(-0.5)) / size
        assert slope == pytest.approx(length**2, rel=0.03)
    finally:
        end()


def _leaves(tree: Any) -> list[Any]:
    found: list[Any] = []
    tree_map(found.append, tree)
    return found
