"""The parts of a batch on their threads give what the whole batch gives on one."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx.utils import tree_flatten, tree_map

from adapted_model import adapted, three_cores
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.training.examples import Example
from oodatcaa.training.mlx.batches import Batch, divide, make_batch
from oodatcaa.training.mlx.cpu import on_cpu
from oodatcaa.training.mlx.evaluate import example_losses
from oodatcaa.training.mlx.loss import make_loss, split_head
from oodatcaa.training.mlx.parallel import divided_gradient, divided_loss
from oodatcaa.training.mlx.prefix import frozen_prefix
from oodatcaa.training.mlx.randomness import draw, seeded
from oodatcaa.training.mlx.recompute import recompute
from oodatcaa.training.mlx.team import Team, make_team
from packed_models import step_loss
from tiny_model import make_tiny_model

pytestmark = pytest.mark.skipif(not on_cpu(), reason="the measures are for MLX's CPU device")


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    three_cores(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def examples(rows: int) -> list[Example]:
    """Of several lengths; every second one with a masked prompt."""
    chance = np.random.default_rng(0)
    return [
        Example(tuple(chance.integers(3, 300, 20 + 7 * n).tolist()), 1 + n % 2 * 9)
        for n in range(rows)
    ]


@pytest.fixture(params=[1, -1], ids=["above frozen blocks", "every block"])
def model(folder: Path, request: pytest.FixtureRequest) -> Any:
    made = adapted(folder, request.param)
    made.train()
    return made


@pytest.fixture
def team(model: Any) -> Iterator[Team]:
    made = make_team(model, 8)
    assert made is not None
    assert made.size == 3
    yield made
    made.close()


def step(model: Any, loss: Any, batch: Batch) -> tuple[float, int, dict[str, mx.array]]:
    (value, count), gradients = nn.value_and_grad(model, loss)(model, *batch)
    mx.eval(value, count, gradients)
    return value.item(), int(count.item()), dict(tree_flatten(gradients))


@pytest.mark.parametrize(
    ("rows", "share", "again"),
    [
        *((rows, share, 0) for share in (None, 1.5) for rows in (1, 2, 3, 5)),
        *((rows, 1.5, again) for again in (1, 3) for rows in (1, 3, 5)),
    ],
)
def test_loss_and_gradients_are_those_of_the_whole_batch(
    model: Any, team: Team, rows: int, share: float | None, again: int
) -> None:
    batch = make_batch(examples(rows), 128)
    if share is not None:
        batch = batch._replace(share=mx.array(share))
    split = split_head(model)
    model.train()
    value, count, gradients = step(model, make_loss(split, at_once=True), batch)
    if again:
        params = QLoRA(num_layers=-1, grad_checkpoint=True, grad_checkpoint_layers=again)
        recompute([model, *team.networks], params, at_once=True)
    prefix = frozen_prefix(model)
    model.train()
    team.adopt(prefix)
    divided = divided_gradient(team, make_loss(split, prefix=prefix, at_once=True), prefix)
    first = step(model, divided, batch)
    assert first[0] == pytest.approx(value, rel=1e-5)
    assert first[1] == count == sum(e.targets for e in examples(rows))
    assert first[2].keys() == gradients.keys()
    for name, gradient in gradients.items():
        largest = float(mx.abs(gradient).max().item().real)
        assert largest > 0
        assert float(mx.abs(first[2][name] - gradient).max().item().real) < 1e-4 * largest, name
    second = step(model, divided, batch)
    assert second[0] == first[0]
    assert all(mx.array_equal(second[2][name], found) for name, found in first[2].items())


def test_the_parts_follow_the_models_own_arrays(model: Any, team: Team) -> None:
    split = split_head(model)
    loss, batch = make_loss(split, gradient=False), make_batch(examples(4), 128)
    before = divided_loss(team, loss)(model, *batch)[0].item()
    for module in model.modules():
        if "lora_b" in module:
            module.lora_b = module.lora_b * 3
    after = divided_loss(team, loss)(model, *batch)[0].item()
    assert after != pytest.approx(before, rel=1e-3)
    assert after == pytest.approx(loss(model, *batch)[0].item(), rel=1e-5)


def rest(model: Any, team: Team) -> None:
    """A thread drops the last thing that it did when it begins the next one, or a moment later."""
    team.each(lambda *_: None, [0] * team.size, model.trainable_parameters())


def test_frozen_arrays_are_shared_and_nothing_is_kept_of_a_step(model: Any, team: Team) -> None:
    mine = {id(array) for _, array in tree_flatten(model.parameters())}
    trained = {id(array) for _, array in tree_flatten(model.trainable_parameters())}

    def held(network: Any, _: Any) -> set[int]:
        return {id(array) for _, array in tree_flatten(network.parameters())}

    for found in team.each(held, [0, 0, 0], model.trainable_parameters()):
        assert found - mine == set()
        assert len(found) > len(trained)
    divided = divided_gradient(team, make_loss(split_head(model), at_once=True), None)
    batch = make_batch(examples(6), 128)
    step(model, divided, batch)
    rest(model, team)
    active = mx.get_active_memory()
    for _ in range(3):
        step(model, divided, batch)
    rest(model, team)
    # What a step leaves differs by a few numbers; a part's arrays would be hundreds of kilobytes.
    assert mx.get_active_memory() <= active + (16 << 10)


def test_between_two_steps_weights_that_were_trained_on_are_nobodys(model: Any, team: Team) -> None:
    loss, batch = make_loss(split_head(model), gradient=False), make_batch(examples(4), 128)
    divided_loss(team, loss)(model, *batch)
    before = [weakref.ref(array) for _, array in tree_flatten(model.trainable_parameters())]
    model.update(tree_map(lambda array: array * 1.0, model.trainable_parameters()))
    rest(model, team)
    gc.collect()
    assert before
    assert [array() for array in before if array() is not None] == []


@pytest.mark.parametrize("again", [False, True], ids=["rows", "blocks again"])
def test_the_parts_stacks_do_not_count_for_the_kernels_limit(
    folder: Path, tmp_path: Path, again: bool
) -> None:
    """16 parts reserve 300 MB that nobody touches, and as much again for blocks computed again."""
    code = f"""
from pathlib import Path
import mlx.core as mx
from oodatcaa.training.mlx import setup
from oodatcaa.training.mlx.guard import walled
from oodatcaa.training.mlx.recompute import start_threads_beside
from oodatcaa.training.mlx.team import make_team
network, _ = setup.load_base({str(folder)!r})
with walled(Path({str(tmp_path)!r}), 500_000_000):
    team = make_team(network, 16)
    assert team is not None
    if {again}:
        start_threads_beside(network, team)
    held = b"x" * 320_000_000
"""
    env = {**os.environ, "MKL_NUM_THREADS": "16", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_parts_are_in_the_models_mode(model: Any, team: Team) -> None:
    def modes(network: Any, _: Any) -> set[bool]:
        return {module.training for module in network.modules()}

    for wanted in (False, True, False):
        model.train(wanted)
        assert team.each(modes, [0, 0], model.trainable_parameters()) == [{wanted}] * 2


def test_an_error_of_one_part_is_raised_and_the_team_goes_on(model: Any, team: Team) -> None:
    ended = []

    def work(_: Any, part: int) -> int:
        if part == 0:
            raise ValueError("part 0")
        ended.append(part)
        return part

    with pytest.raises(ValueError, match="part 0"):
        team.each(work, [0, 1, 2], model.trainable_parameters())
    assert sorted(ended) == [1, 2]
    assert team.each(work, [3, 4], model.trainable_parameters()) == [3, 4]


def test_losses_of_single_examples_are_those_of_one_thread(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = examples(7)
    divided = example_losses(model, chosen, 128, 1 << 40)
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    assert divided == pytest.approx(example_losses(model, chosen, 128, 1 << 40), rel=1e-5)


def test_one_row_or_one_core_needs_no_team(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_team(model, 1) is None
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    assert make_team(model, 8) is None


class Odd(nn.Module):  # type: ignore[misc]
    """Answers in the thread that made it, and counts there."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.home = threading.get_ident()
        self.kind = kind
        if kind == "can not be copied":
            object.__setattr__(self, "lock", threading.Lock())

    def __call__(self, tokens: mx.array) -> mx.array:
        away = threading.get_ident() != self.home
        if away and self.kind == "fails on another thread":
            raise RuntimeError("not here")
        found: mx.array = self.inner(tokens[..., None] * mx.ones((4,))) + (1.0 if away else 0.0)
        return found


@pytest.mark.parametrize(
    "kind", ["can not be copied", "fails on another thread", "answers otherwise"]
)
def test_a_model_that_does_not_work_in_parts_is_left_whole(kind: str) -> None:
    before = threading.active_count()
    assert make_team(Odd(kind), 4) is None
    assert threading.active_count() == before


@given(
    st.lists(st.tuples(st.integers(2, 70), st.integers(1, 69)), min_size=1, max_size=9),
    st.integers(1, 6),
)
def test_every_target_goes_with_its_row(shapes: list[tuple[int, int]], parts: int) -> None:
    chosen = [
        Example(tuple(range(1000 * n, 1000 * n + length)), min(offset, length - 1))
        for n, (length, offset) in enumerate(shapes)
    ]
    batch = make_batch(chosen, 128)
    found = divide(batch, parts)
    assert len(found) == min(parts, len(chosen))
    seen = []
    for part in found:
        assert part.inputs.shape[1] == batch.inputs.shape[1]
        assert len(part.inputs) >= 1
        flat = np.array(part.inputs).reshape(-1)
        real = np.array(part.weights) > 0
        # Consecutive tokens: a row's position holds the token before its target.
        assert (flat[np.array(part.rows)[real]] + 1 == np.array(part.targets)[real]).all()
        seen += np.array(part.targets)[real].tolist()
    assert seen == [token for e in chosen for token in e.tokens[e.offset :]]


def test_each_part_drops_something_of_its_own(folder: Path) -> None:
    model = adapted(folder, -1, dropout=0.4)
    made = make_team(model, 3)
    assert made is not None
    loss = make_loss(split_head(model), at_once=True, random=True)
    model.train()
    row = examples(1)
    try:
        mx.random.seed(9)
        divided = divided_gradient(made, loss, None, random=True)
        together = [step(model, divided, make_batch(row * 3, 128)) for _ in range(2)]
        mx.random.seed(9)
        again = step(model, divided, make_batch(row * 3, 128))
    finally:
        made.close()
    assert again[0] == together[0][0] != together[1][0]
    assert all(mx.array_equal(again[2][name], found) for name, found in together[0][2].items())

    mx.random.seed(9)
    alone = []
    for seed in draw(3):
        with seeded(seed):
            alone.append(step(model, loss, make_batch(row, 128)))
    assert len({value for value, _, _ in alone}) == 3
    assert again[0] == pytest.approx(sum(value for value, _, _ in alone) / 3, rel=1e-5)
    for name, found in again[2].items():
        mean = (alone[0][2][name] + alone[1][2][name] + alone[2][2][name]) / 3
        largest = float(mx.abs(mean).max().item().real)
        assert mx.allclose(found, mean, rtol=1e-3, atol=1e-5 * largest), name


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("rows", [1, 3])
def test_what_is_dropped_is_dropped_again_when_a_block_is_computed_again(
    folder: Path, rows: int, dora: bool
) -> None:
    def found(again: bool) -> dict[str, mx.array]:
        model = adapted(folder, -1, dropout=0.4, dora=dora)
        loss, made = step_loss(model, rows, at_once=True, again=again)
        mx.random.seed(4)
        try:
            # Two steps: the second has other masks, and must go on from the same random state.
            values = [step(model, loss, make_batch(examples(rows), 128)) for _ in range(2)]
        finally:
            if made is not None:
                made.close()
        assert values[0][0] != values[1][0]
        return values[1][2]

    kept, computed = found(again=False), found(again=True)
    for name, gradient in kept.items():
        assert mx.allclose(computed[name], gradient, rtol=1e-4, atol=1e-6), name
