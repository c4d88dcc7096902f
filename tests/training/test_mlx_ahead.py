"""The frozen blocks of the next batch, beside the step of the one before: the same bits."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from adapted_model import adapted, three_cores
from oodatcaa.domain.training import TrainSpec
from oodatcaa.training.examples import Example
from oodatcaa.training.mlx import blas
from oodatcaa.training.mlx.ahead import Ahead
from oodatcaa.training.mlx.batches import Batch, make_batch
from oodatcaa.training.mlx.cpu import on_cpu
from oodatcaa.training.mlx.loss import make_loss, split_head
from oodatcaa.training.mlx.parallel import divided_gradient
from oodatcaa.training.mlx.prefix import Ended, FrozenPrefix, frozen_prefix
from oodatcaa.training.mlx.team import Team, make_team
from oodatcaa.training.mlx.trainer import Run
from tiny_model import make_tiny_model

pytestmark = pytest.mark.skipif(not on_cpu(), reason="the measures are for MLX's CPU device")


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    three_cores(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


class Parts:
    """A model whose last block is trained, with a team of three and the frozen blocks apart."""

    def __init__(self, folder: Path) -> None:
        self.model = adapted(folder, 1)
        self.split = split_head(self.model)
        team, prefix = make_team(self.model, 3), frozen_prefix(self.model)
        assert team is not None
        assert prefix is not None
        self.team: Team = team
        self.prefix: FrozenPrefix = prefix
        team.adopt(prefix)
        self.model.train()

    def step(self, batch: Batch, ahead: Ahead | None) -> list[np.ndarray[Any, Any]]:
        inner = make_loss(self.split, prefix=self.prefix, at_once=True)
        loss = divided_gradient(self.team, inner, self.prefix, ahead=ahead)
        (value, _), gradients = nn.value_and_grad(self.model, loss)(self.model, *batch)
        mx.eval(value, gradients)
        return [np.array(value), *(np.array(found) for _, found in tree_flatten(gradients))]


@pytest.fixture
def parts(folder: Path) -> Iterator[Parts]:
    made = Parts(folder)
    yield made
    made.team.close()


def batches(*rows: int) -> list[Batch]:
    chance = np.random.default_rng(0)
    return [
        make_batch(
            [Example(tuple(chance.integers(3, 300, 20 + n).tolist()), 1) for n in range(size)], 128
        )
        for size in rows
    ]


def spy(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """By whom frozen blocks were run, and for how many rows; the real thing runs."""
    ran: list[tuple[str, int]] = []
    run = parts.prefix.run

    def watched(model: Any, tokens: mx.array) -> mx.array:
        ran.append((threading.current_thread().name, tokens.shape[0]))
        return run(model, tokens)

    monkeypatch.setattr(parts.prefix, "run", watched)
    return ran


def same(ours: list[np.ndarray[Any, Any]], theirs: list[np.ndarray[Any, Any]]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("rows", [(3, 3, 3), (4, 5, 3, 6), (3, 1, 3, 2, 3, 3), (1, 1), (3,)])
def test_each_step_is_the_same_to_the_last_bit(
    parts: Parts, rows: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = batches(*rows)
    apart = [parts.step(batch, None) for batch in given]
    ahead = Ahead(parts.team, parts.prefix)
    ran = spy(parts, monkeypatch)
    seen = ahead.over(lambda: iter(given), len(given))
    beside = [parts.step(batch, ahead) for batch in seen()]
    assert len(beside) == len(apart)
    assert all(same(a, b) for a, b in zip(apart, beside, strict=True))
    # No row twice, and none left out.
    assert sum(size for _, size in ran) == sum(rows)


def test_the_next_batch_is_begun_before_its_step(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = Ahead(parts.team, parts.prefix)
    ran = spy(parts, monkeypatch)
    steps = iter(ahead.over(lambda: iter(batches(3, 3)), 2)())
    parts.step(next(steps), ahead)
    parts.team.each(lambda *_: None, [0, 1, 2], parts.model.trainable_parameters())
    assert len(ran) == 6
    assert {name[:6] for name, _ in ran} == {"rows-0", "rows-1", "rows-2"}


def test_a_step_of_other_rows_than_those_begun_runs_its_own(parts: Parts) -> None:
    """As an iterator that was begun again would give it."""
    first, second, other = batches(3, 3, 4)
    wanted = parts.step(other, None)
    ahead = Ahead(parts.team, parts.prefix)
    parts.step(next(iter(ahead.over(lambda: iter([first, second]), 2)())), ahead)
    assert same(parts.step(other, ahead), wanted)


def test_no_batch_is_made_that_nobody_will_train_on() -> None:
    made: list[int] = []

    def endless() -> Iterator[Batch]:
        for number in count():
            made.append(number)
            yield batches(1)[0]

    class Small:
        size = 2

    ahead = Ahead(Small(), object())  # type: ignore[arg-type]
    assert len(list(ahead.over(endless, 4)())) == 4
    assert made == [0, 1, 2, 3]


def test_who_wants_other_threads_for_a_product_waits_for_what_works_beside(parts: Parts) -> None:
    """Their number is the process's, and decides the last bits."""
    values = parts.model.trainable_parameters()

    def slow(*_: Any) -> tuple[int, int]:
        before = blas.threads()
        time.sleep(0.3)
        return before, blas.threads()

    begun: list[Any] = []

    def begin() -> None:
        begun.extend(parts.team.beside(slow, [0, 1, 2]))

    parts.team.each(lambda *_: None, [0, 1, 2], values, meanwhile=begin)
    assert blas.threads() == 1
    assert parts.team.each(lambda *_: blas.threads(), [0], values) == [3]
    assert [future.result(timeout=0) for future in begun] == [(1, 1)] * 3
    assert blas.threads() == 3
    parts.team.each(lambda *_: None, [0, 1, 2], values)
    assert blas.threads() == 3


def test_closing_ends_what_is_under_way_and_gives_the_cores_back(parts: Parts) -> None:
    running, go = threading.Semaphore(0), threading.Event()
    mlp = type(parts.model.layers[0].mlp)

    class Slow(mlp):  # type: ignore[misc,valid-type]
        def __call__(self, x: mx.array) -> mx.array:
            running.release()
            assert go.wait(20)
            found: mx.array = super().__call__(x)
            return found

    for network in parts.team.networks:
        network.layers[0].mlp.__class__ = Slow
    ahead = Ahead(parts.team, parts.prefix)
    row = batches(1)[0]
    begun: list[Any] = []

    def begin() -> None:
        begun.extend(parts.team.beside(parts.prefix.filled, [row] * 3))

    values = parts.model.trainable_parameters()
    parts.team.each(lambda *_: None, [0, 1, 2], values, meanwhile=begin)
    assert all(running.acquire(timeout=20) for _ in range(3))
    ahead.close()
    go.set()
    parts.team.close()
    assert all(isinstance(future.exception(timeout=0), Ended) for future in begun)
    assert blas.threads() == 3


def test_an_error_beside_is_raised_by_the_step_it_was_for(parts: Parts) -> None:
    first, second = batches(3)[0], make_batch([Example(tuple(range(3, 120)), 1)] * 3, 128)
    assert first.inputs.shape[1] < second.inputs.shape[1]
    run = parts.prefix.run

    def failing(model: Any, tokens: mx.array) -> mx.array:
        if tokens.shape[1] == second.inputs.shape[1]:
            raise ValueError("these rows can not be run")
        return run(model, tokens)

    parts.prefix.run = failing  # type: ignore[method-assign]
    ahead = Ahead(parts.team, parts.prefix)
    steps = iter(ahead.over(lambda: iter([first, second]), 2)())
    parts.step(next(steps), ahead)
    with pytest.raises(ValueError, match="can not be run"):
        parts.step(next(steps), ahead)
    assert blas.threads() == 3


def test_a_run_that_stops_early_gives_the_cores_back(folder: Path, tmp_path: Path) -> None:
    """And Muon, which multiplies between two steps, has nothing beside it."""
    lines = [json.dumps({"text": f"number {n} " * 9}) for n in range(8)]
    for split in ("train", "valid"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    found = {}
    for optimizer in ("adamw", "muon"):
        params = {
            **{"iters": 6, "batch_size": 4, "num_layers": 1, "rank": 4, "optimizer": optimizer},
            **{"mask_prompt": False, "val_batches": 1, "max_seq_length": 64},
        }
        spec = TrainSpec.model_validate(
            {"model": str(folder), "data_dir": str(tmp_path), "params": params}
        )
        place = tmp_path / optimizer
        place.mkdir()
        run = Run(place, spec, None)
        run.enough = lambda iteration, _: "enough" if iteration == 3 else ""
        run.train()
        found[optimizer] = run
        assert run.stopped_early == "enough"
        assert blas.threads() == 3
    assert found["adamw"].ahead is not None
    assert found["muon"].ahead is None
