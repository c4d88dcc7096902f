"""What is wrong with mlx-lm's own training path, one by one, and is not with ours.

Each test names the defect. Where stock code can show it in passing, the test lets it.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.tuner.trainer as stock
import numpy as np
import pytest
from mlx_lm import load
from mlx_lm.tuner.datasets import ChatDataset
from pydantic import ValidationError

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import FailureKind, RunStatus, TrainSpec
from oodatcaa.training.checkpoints import checkpoint_name
from oodatcaa.training.examples import Example, epoch_order, read_split
from oodatcaa.training.masks import WRONG_MASK
from oodatcaa.training.mlx.batches import BatchIterator, make_batch, tokenize
from oodatcaa.training.mlx.loss import make_loss, split_head
from oodatcaa.training.mlx.trainer import Run
from oodatcaa.training.protocol import (
    ADAPTER_FILE,
    ADAPTERS_DIR,
    CHECKPOINTS_DIR,
    METRICS_FILE,
    WorkerResult,
)
from tiny_model import make_tiny_data, make_tiny_model
from wrong_mask import wrong_mask

SMALL: dict[str, Any] = {
    **{"rank": 4, "num_layers": 2, "batch_size": 1, "max_seq_length": 96, "optimizer": "sgd"},
    **{"learning_rate": 0.5, "steps_per_eval": 100, "val_batches": -1, "save_every": 100},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training examples with very different numbers of target tokens."""
    folder = make_tiny_data(tmp_path_factory.mktemp("data"), 4)
    lines = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines):
        line["messages"][1]["content"] = "x = 1\n" * (1 + 4 * number)
    (folder / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


Train = Callable[..., WorkerResult]


@pytest.fixture
def train(tiny: Path, data: Path, tmp_path: Path) -> Train:
    def run(name: str, params: dict[str, Any], **fields: Any) -> WorkerResult:
        values = {"model": str(tiny), "data_dir": str(data), "params": {**SMALL, **params}}
        (tmp_path / name).mkdir()
        return Run(tmp_path / name, TrainSpec.model_validate({**values, **fields}), None).train()

    return run


def adapter(folder: Path) -> dict[str, mx.array]:
    found: Any = mx.load(str(folder / ADAPTERS_DIR / ADAPTER_FILE))
    return dict(found)


def close(one: dict[str, mx.array], other: dict[str, mx.array]) -> bool:
    return all(mx.allclose(one[n], other[n], rtol=1e-4, atol=1e-6).item() for n in one)


def equal(one: dict[str, mx.array], other: dict[str, mx.array]) -> bool:
    return all(mx.array_equal(one[n], other[n]).item() for n in one)


def log_normal(count: int) -> list[Example]:
    lengths = np.random.default_rng(0).lognormal(5.0, 0.8, count).clip(8, 1024).astype(int)
    return [Example(tuple(range(1, n + 1)), 1) for n in lengths]


def filled(batches: list[Any]) -> float:
    """The share of the positions that are computed which hold a token."""
    return float(sum(np.count_nonzero(np.array(b)) for b in batches) / sum(b.size for b in batches))


def test_sorting_by_length_really_buckets() -> None:
    examples = log_normal(1024)
    ours = BatchIterator(0)(examples, 4, 1024, loop=True)
    assert filled([next(ours).inputs for _ in range(256)]) > 0.88
    # What its dataset class hands to the stock iterator: the number of keys, not of tokens.
    assert "return len(self._data[idx])" in inspect.getsource(stock.CacheDataset.itemlen)
    random = np.random.default_rng(0).permutation(1024).reshape(256, 4)
    unsorted = [make_batch([examples[i] for i in row], 1024).inputs for row in random]
    assert filled(unsorted) < 0.6


def test_no_padding_token_is_counted(tiny: Path) -> None:
    loaded: Any = load(str(tiny))
    examples = [Example(tuple(range(3, 40)), 10), Example(tuple(range(3, 20)), 10)]
    _, count = make_loss(split_head(loaded[0]))(loaded[0], *make_batch(examples, 128))
    assert count.item() == (40 - 3 - 10) + (20 - 3 - 10)
    rows = np.zeros((2, 65), np.int32)
    for i, example in enumerate(examples):
        rows[i, : len(example.tokens)] = example.tokens
    spans = mx.array([[e.offset, len(e.tokens)] for e in examples])
    _, theirs = stock.default_loss(loaded[0], mx.array(rows), spans)
    assert theirs.item() == count.item() + 2


def test_a_prompt_that_fills_the_sequence_is_not_zero_over_zero(tiny: Path, data: Path) -> None:
    loaded: Any = load(str(tiny))
    rows = read_split(data / "train.jsonl")
    rows[0]["messages"][0]["content"] = "y" * 400
    found = tokenize(rows, loaded[1], mask_prompt=True, max_seq_length=96)
    assert sum(found.dropped.values()) == 1
    loss = make_loss(split_head(loaded[0]))
    for batch in BatchIterator(0)(found.items, 1, 96):
        value, count = loss(loaded[0], *batch)
        assert mx.isfinite(value).item()
        assert (count >= 1).item()
    broken, _ = stock.default_loss(loaded[0], mx.zeros((1, 33), mx.int32), mx.array([[96, 96]]))
    assert not mx.isfinite(broken).item()


def test_accumulated_batches_equal_one_large_batch(tmp_path: Path, train: Train) -> None:
    one = train("one", {"iters": 1, "batch_size": 4})
    four = train("four", {"iters": 4, "grad_accumulation_steps": 4})
    assert (one.optimizer_steps, four.optimizer_steps) == (1, 1)
    assert close(adapter(tmp_path / "four"), adapter(tmp_path / "one"))
    start = train("start", {"iters": 1, "batch_size": 4, "learning_rate": 1e-20})
    assert start.status is RunStatus.FINISHED
    assert not close(adapter(tmp_path / "start"), adapter(tmp_path / "one"))
    # What is reported stays the mean of each batch itself.
    tokens = [m["tokens"] for m in metrics(tmp_path / "four")]
    mean = sum(m["loss"] * m["tokens"] for m in metrics(tmp_path / "four")) / sum(tokens)
    assert len(set(tokens)) == 4
    assert mean == pytest.approx(metrics(tmp_path / "one")[0]["loss"], rel=1e-4)


def metrics(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    lines = (folder / METRICS_FILE).read_text().splitlines()
    return [m for m in map(json.loads, lines) if m["kind"] == kind]


def test_an_accumulation_that_is_not_full_at_the_end_is_trained(
    tmp_path: Path, train: Train
) -> None:
    whole = train("whole", {"iters": 5, "grad_accumulation_steps": 3, "save_every": 1})
    assert whole.optimizer_steps == 2
    assert [m["iteration"] for m in metrics(tmp_path / "whole")] == [1, 2, 3, 4, 5]
    parent = tmp_path / "whole" / CHECKPOINTS_DIR
    assert sorted(p.name for p in parent.iterdir()) == [checkpoint_name(3), checkpoint_name(5)]
    before: Any = mx.load(str(parent / checkpoint_name(3) / ADAPTER_FILE))
    assert not close(adapter(tmp_path / "whole"), before)
    on = {"resume_from": str(parent / checkpoint_name(3)), "start_iteration": 3}
    train("again", {"iters": 5, "grad_accumulation_steps": 3, "save_every": 1}, **on)
    assert equal(adapter(tmp_path / "again"), adapter(tmp_path / "whole"))
    few = train("few", {"iters": 2, "grad_accumulation_steps": 8})
    assert (few.status, few.optimizer_steps) == (RunStatus.FINISHED, 1)


def test_validation_is_of_the_same_set_and_leaves_training_alone(
    tmp_path: Path, train: Train
) -> None:
    still = {"iters": 4, "dropout": 0.5, "learning_rate": 1e-20, "steps_per_eval": 1}
    seen = [p.loss for p in train("still", still).valid_losses]
    assert len(seen) == 5
    assert len(set(seen)) == 1
    moving = {"iters": 4, "dropout": 0.5}
    train("often", {**moving, "steps_per_eval": 1})
    train("seldom", {**moving, "steps_per_eval": 4})
    assert equal(adapter(tmp_path / "often"), adapter(tmp_path / "seldom"))


def test_batches_are_mixed_anew_each_epoch_and_no_row_is_left_out() -> None:
    lengths = [10 + i for i in range(10)]
    epochs = [epoch_order(lengths, 4, 0, epoch) for epoch in range(3)]
    assert all({i for batch in order for i in batch} == set(range(10)) for order in epochs)
    members = [{frozenset(batch) for batch in order} for order in epochs]
    assert members[0] != members[1] != members[2]


def test_the_threshold_of_the_cache_arrives(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = stock._clear_cache

    def clear(threshold: int) -> None:
        seen.append(threshold)
        real(threshold)

    monkeypatch.setattr(stock, "_clear_cache", clear)
    result = train("run", {"iters": 2, "clear_cache_threshold": 12345, "steps_per_eval": 100})
    validated = 4 * len(result.valid_losses)  # batches of one example
    assert validated == 8
    assert seen == [12345] * (2 + validated)


def test_a_mask_that_would_cut_at_the_wrong_place_is_refused(
    train: Train, tiny: Path, data: Path, tmp_path: Path
) -> None:
    model = str(wrong_mask(tiny, tmp_path / "model"))
    result = train("run", {"iters": 1}, model=model)
    assert result.failure is not None
    assert result.failure.kind is FailureKind.BAD_INPUT
    assert f"example 1: {WRONG_MASK} (examples: " in result.failure.message
    whole = train("whole", {"iters": 1, "mask_prompt": False}, model=model)
    assert whole.status is RunStatus.FINISHED
    # The stock path takes the length of what is no beginning of the whole for an offset.
    loaded: Any = load(model)
    dataset = ChatDataset(read_split(data / "train.jsonl"), loaded[1], mask_prompt=True)
    tokens, offset = dataset.process(dataset[0])
    assert offset > 0
    assert "1 turns" not in loaded[1].decode(tokens)


def test_the_callback_hears_of_every_iteration(tmp_path: Path, train: Train) -> None:
    result = train("run", {"iters": 7, "steps_per_report": 1})
    assert [p.iteration for p in result.train_losses] == list(range(1, 8))
    assert [m["iteration"] for m in metrics(tmp_path / "run")] == list(range(1, 8))


def test_a_key_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(ValidationError, match="learning_rat\n"):
        QLoRA.model_validate({"learning_rat": 1e-4})
    with pytest.raises(ValidationError, match="memory_limit\n"):
        TrainSpec.model_validate({"model": "m", "data_dir": "d", "params": {}, "memory_limit": 1})


def test_tensors_of_another_rank_are_not_resumed_from(tmp_path: Path, train: Train) -> None:
    train("eight", {"iters": 1, "rank": 8})
    point = tmp_path / "eight" / CHECKPOINTS_DIR / checkpoint_name(1)
    result = train("sixteen", {"iters": 2, "rank": 16}, resume_from=str(point))
    assert result.failure is not None
    assert result.failure.kind is FailureKind.BAD_INPUT
    assert "lora_a: not the same tensor" in result.failure.message
    fewer = train("layers", {"iters": 2, "rank": 8, "num_layers": 1}, resume_from=str(point))
    assert fewer.failure is not None
    assert "not the same tensor" in fewer.failure.message
