"""What checkpointed blocks leave in memory where the CPU's layers evaluate as they are met."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.training.mlx.batches import make_batch
from oodatcaa.training.mlx.cpu import on_cpu
from oodatcaa.training.mlx.loss import make_loss, split_head
from oodatcaa.training.mlx.parallel import divided_gradient, make_team
from oodatcaa.training.mlx.recompute import recompute
from packed_models import drawn, network_of

pytestmark = pytest.mark.skipif(not on_cpu(), reason="layers evaluate so on the CPU alone")
BLOCKS, LENGTH = 8, 256
WIDE = {"num_hidden_layers": BLOCKS, "intermediate_size": 256}


def peak(again: int, rows: int) -> int:
    """Bytes above the model, of the second of two steps with so many blocks computed again."""
    network = network_of("llama", WIDE, trained=BLOCKS, bits=4)
    kind = type(network.layers[0])
    stock = kind.__call__
    team = make_team(network, rows)
    if rows > 1 and team is None:
        pytest.skip("one core")
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
        given = [array for array in batch if array is not None]
        step = nn.value_and_grad(network, loss)
        for _ in range(2):
            mx.reset_peak_memory()
            before = mx.get_active_memory()
            (value, _), gradient = step(network, *given)
            mx.eval(value, gradient)
            del value, gradient
        return mx.get_peak_memory() - before
    finally:
        kind.__call__ = stock
        if team is not None:
            team.close()


@pytest.mark.parametrize("rows", [1, 2])
def test_blocks_computed_again_are_not_kept(rows: int) -> None:
    none, half, every = (peak(count, rows) for count in (0, BLOCKS // 2, BLOCKS))
    assert half < 0.75 * none
    assert every < 0.4 * none
