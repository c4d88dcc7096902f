"""Which tokens are trained on, in which order, and that only those cost anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.tuner.trainer import default_loss
from mlx_lm.tuner.utils import linear_to_lora_layers

from oodatcaa.errors import OodatcaaError
from oodatcaa.training import examples as shared
from oodatcaa.training.examples import Example, epoch_order, read_split
from oodatcaa.training.mlx.batches import BatchIterator, make_batch, tokenize
from oodatcaa.training.mlx.loss import WHOLE, make_loss, split_head
from tiny_model import make_tiny_data, make_tiny_model
from wrong_mask import opens_a_thought


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    loaded: Any = load(str(tiny))
    loaded[0].freeze()
    linear_to_lora_layers(loaded[0], 1, {"rank": 4, "scale": 2.0, "dropout": 0.0})
    return loaded


lengths = st.lists(st.integers(2, 500), min_size=1, max_size=60)


@given(lengths, st.integers(1, 9), st.integers(0, 2**32), st.integers(0, 5))
def test_an_epoch_holds_every_example_and_only_full_batches(
    sizes: list[int], batch: int, seed: int, epoch: int
) -> None:
    order = epoch_order(sizes, batch, seed, epoch)

    used = [i for chosen in order for i in chosen]
    assert set(used) == set(range(len(sizes)))
    assert {len(chosen) for chosen in order} == {batch}
    assert len(used) - len(sizes) < batch
    assert order == epoch_order(sizes, batch, seed, epoch)


@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 40), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_a_resumed_order_goes_on_with_the_next_batch(
    count: int, size: int, start: int, seed: int
) -> None:
    data = [Example((1, i + 2, 3), 1) for i in range(count)]

    def first(iterator: BatchIterator, wanted: int) -> list[Any]:
        stream = iterator(data, size, 64, loop=True)
        return [next(stream).targets.tolist() for _ in range(wanted)]

    whole = first(BatchIterator(seed), start + 3)
    assert first(BatchIterator(seed, start), 3) == whole[start:]


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_a_validation_takes_every_example_once(count: int, size: int, seed: int) -> None:
    data = [Example((1, *range(2, i + 3)), 1) for i in range(count)]

    def lengths_of(iterator: BatchIterator) -> list[int]:
        return [int(b.weights.sum().item().real) for b in iterator(data, size, 64)]

    found = lengths_of(BatchIterator(seed))
    assert sum(found) == sum(e.targets for e in data)
    assert found == lengths_of(BatchIterator(seed))


def test_a_short_validation_is_not_one_of_the_shortest_examples() -> None:
    data = [Example((1, *range(2, i + 3)), 1) for i in range(40)]
    first = {next(BatchIterator(seed)(data, 4, 64)).weights.sum().item() for seed in range(8)}
    assert len(first) > 2


@given(st.lists(st.tuples(st.integers(2, 90), st.integers(1, 89)), min_size=1, max_size=5))
def test_a_batch_asks_for_exactly_the_target_tokens(shapes: list[tuple[int, int]]) -> None:
    examples = [
        Example(tuple(range(7 * n, 7 * n + length)), min(offset, length - 1))
        for n, (length, offset) in enumerate(shapes)
    ]

    batch = make_batch(examples, 128)

    inputs = np.array(batch.inputs).reshape(-1)
    kept = np.array(batch.weights) > 0
    rows, targets = np.array(batch.rows)[kept], np.array(batch.targets)[kept]
    expected = [token for e in examples for token in e.tokens[e.offset :]]
    assert targets.tolist() == expected
    # Each row's own input is the token before its target: these counters only go up by one.
    assert (inputs[rows] + 1).tolist() == expected
    assert batch.targets.shape[0] % shared.TARGETS_TO == 0


def gradients(model: Any, loss: Any, *batch: Any) -> tuple[float, int, dict[str, mx.array]]:
    (value, count), grads = nn.value_and_grad(model, loss)(model, *batch)
    return value.item(), int(count.item()), dict(tree_flatten(grads))


def test_the_sparse_loss_equals_mlx_lms_own(model: Any) -> None:
    network = model[0]
    examples = [Example(tuple(range(3, 50)), 20), Example(tuple(range(100, 130)), 5)]
    split = split_head(network)
    assert split.sparse
    ours = gradients(network, make_loss(split), *make_batch(examples, 128))
    dense = gradients(network, make_loss(WHOLE), *make_batch(examples, 128))

    padded = np.zeros((2, 65), np.int32)
    for i, e in enumerate(examples):
        padded[i, : len(e.tokens)] = e.tokens
    # mlx-lm's mask reaches one token too far, into the padding: hence the shorter lengths.
    spans = mx.array([[e.offset, len(e.tokens) - 1] for e in examples])
    stock = gradients(network, default_loss, mx.array(padded), spans)

    for other in (dense, stock):
        assert ours[0] == pytest.approx(other[0], rel=1e-5)
        assert ours[1] == other[1]
        for name, value in ours[2].items():
            assert mx.allclose(value, other[2][name], rtol=1e-3, atol=1e-6).item(), name


def test_a_model_with_something_behind_its_head_is_not_split(model: Any) -> None:
    network = model[0]

    class Capped(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = network.model

        def __call__(self, tokens: mx.array) -> mx.array:
            return 3.0 * mx.tanh(network(tokens) / 3.0)

    assert not split_head(Capped()).sparse


def test_dropout_does_not_hide_the_split(tiny: Path) -> None:
    loaded: Any = load(str(tiny))
    network = loaded[0]
    linear_to_lora_layers(network, 2, {"rank": 4, "scale": 2.0, "dropout": 0.5})
    for _, module in network.named_modules():
        if "lora_b" in module:
            module.lora_b = mx.ones(module.lora_b.shape)
    state: Any = mx.random.state
    before = state[0].tolist()

    assert split_head(network).sparse
    assert state[0].tolist() == before


def test_a_prompt_as_long_as_the_sequence_is_dropped_and_counted(
    model: Any, tmp_path: Path
) -> None:
    rows = read_split(make_tiny_data(tmp_path) / "train.jsonl")
    long = {"messages": [{"role": "user", "content": "x" * 90}, rows[0]["messages"][1]]}

    found = tokenize([*rows, long], model[1], mask_prompt=True, max_seq_length=80)
    whole = tokenize([*rows, long], model[1], mask_prompt=False, max_seq_length=80)

    assert found.dropped == {shared.NO_TARGET: 1}
    assert len(found.items) == len(rows)
    assert all(e.targets >= 1 for e in found.items)
    assert whole.dropped == {}
    assert whole.notes == {shared.TRUNCATED: 1}
    assert all(e.offset == 1 for e in whole.items)


def test_the_whole_answer_and_nothing_before_it_is_trained_on(model: Any, tmp_path: Path) -> None:
    """Whether or not the prompt ends in a thought that the finished conversation does not hold."""
    rows = read_split(make_tiny_data(tmp_path) / "train.jsonl")
    folder = opens_a_thought(make_tiny_model(tmp_path / "tiny"), tmp_path / "model")
    thinking: Any = load(str(folder))[1]
    found = tokenize(rows, thinking, mask_prompt=True, max_seq_length=512)
    assert found == tokenize(rows, model[1], mask_prompt=True, max_seq_length=512)
    for row, one in zip(rows, found.items, strict=True):
        answer = row["messages"][-1]["content"]
        assert thinking.decode(list(one.tokens[one.offset :])) == f"{answer}<|im_end|>\n"


def test_every_bad_line_is_named(tmp_path: Path, model: Any) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"messages": []\n[1]\n' + json.dumps({"text": "fine"}) + "\n\nnope\n")

    with pytest.raises(OodatcaaError) as caught:
        read_split(path)
    assert [d.split(":")[1] for d in caught.value.details] == ["1", "2", "5"]

    pair = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows: list[dict[str, Any]] = [{"messages": pair}, {"other": 1}, {"messages": 3}]
    with pytest.raises(OodatcaaError) as caught:
        tokenize(rows, model[1], mask_prompt=True, max_seq_length=64)
    assert [d.split(":")[0] for d in caught.value.details] == ["example 2", "example 3"]


def test_text_with_masked_prompts_is_one_clear_error(model: Any) -> None:
    with pytest.raises(OodatcaaError, match="masking"):
        tokenize([{"text": "a"}], model[1], mask_prompt=True, max_seq_length=64)


def test_a_line_separator_inside_of_a_string_does_not_end_the_line(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"text": "one\u2028two\u0085three"}\n{"text": "four"}\n', encoding="utf-8")
    assert [row["text"] for row in read_split(path)] == ["one\u2028two\u0085three", "four"]
