"""JSONL becomes examples, and examples become batches; nothing here knows a framework.

Three things differ from mlx-lm's `iterate_batches`, on purpose: examples whose prompt fills the
whole sequence are dropped and counted (one such batch would divide by zero and turn every adapter
tensor into NaN), batches really are made of examples of similar length, and the order is a pure
function of the seed, so a resumed run continues with the very batch it was killed before.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.errors import OodatcaaError
from oodatcaa.training.masks import WRONG_MASK, Rendered, answer_start

PAD_TO = 32
"""Sequence lengths are rounded up to this: fewer shapes to compile for."""
TARGETS_TO = 64
"""Target counts are rounded up to this, for the same reason."""
POOL = 64
"""Batches that are sorted by length together; the rest of the order stays random. With log-normal
lengths 0.90 of the computed positions hold a token, 0.50 without sorting, 0.94 with all sorted."""
POOLS = 4
"""An epoch has at least so many pools, so that who is in a batch with whom changes."""

NO_TARGET = "the prompt fills the whole sequence: no target token left"
TRUNCATED = "longer than max_seq_length: truncated"


Integers = np.ndarray[Any, np.dtype[Any]]


class Arrays(NamedTuple):
    """A batch, padded. `rows` index the flattened [batch * length] axis of `inputs`; where
    `weights` is 1, the row's prediction is to be `targets`."""

    inputs: np.ndarray[Any, np.dtype[np.int32]]
    rows: np.ndarray[Any, np.dtype[np.int32]]
    targets: np.ndarray[Any, np.dtype[np.int32]]
    weights: np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Example:
    """Tokens, already truncated, and the position of the first one that carries loss (>= 1)."""

    tokens: tuple[int, ...]
    offset: int

    @property
    def targets(self) -> int:
        return len(self.tokens) - self.offset


@dataclass(frozen=True)
class Examples:
    """One split, tokenised. `dropped` and `notes` count what could not be used as it was."""

    items: tuple[Example, ...]
    dropped: dict[str, int]
    notes: dict[str, int]
    lost_tokens: int = 0
    """Cut off, of all rows."""


def read_split(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file. Raises OodatcaaError `data.unreadable` with every bad line."""
    rows, bad = [], []
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OodatcaaError(
            "data.unreadable",
            f"{path} can not be read: {error}",
            hint="a data folder holds train.jsonl, valid.jsonl and test.jsonl",
        ) from error
    # JSON strings may hold U+2028 and its like, at which splitlines() would cut.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            bad.append(f"{path.name}:{number}: not JSON: {error}")
            continue
        if isinstance(row, dict):
            rows.append(row)
        else:
            bad.append(f"{path.name}:{number}: not a JSON object")
    if bad:
        raise OodatcaaError("data.unreadable", f"{path} has {len(bad)} bad lines", details=bad)
    return rows


Process = Callable[[dict[str, Any]], tuple[Sequence[int], int]]
"""The tokens of a row, and the position of the first one that carries loss."""


class WrongMaskError(ValueError):
    """No position masks the prompt and nothing of its answer."""

    def __init__(self) -> None:
        super().__init__(WRONG_MASK)


def right_mask(process: Process, tokenizer: Any) -> Process:
    """`process`, which masks nothing, with the prompts of chats masked: see `answer_start`.

    It raises WrongMaskError where that knows no position. `tokenizer` is one of transformers, or
    mlx-lm's around it.
    """

    def render(messages: list[Any], row: dict[str, Any], generate: bool) -> Rendered:
        options = {"tools": row.get("tools"), "add_generation_prompt": generate}
        tokens = tokenizer.apply_chat_template(messages, return_dict=False, **options)
        return Rendered(tokens, text_of(messages, row, generate))

    def text_of(messages: list[Any], row: dict[str, Any], generate: bool) -> Callable[[], str]:
        options = {"tools": row.get("tools"), "add_generation_prompt": generate}
        return lambda: str(tokenizer.apply_chat_template(messages, tokenize=False, **options))

    def masked(row: dict[str, Any]) -> tuple[Sequence[int], int]:
        tokens, offset = process(row)
        if "messages" not in row and "text" in row:
            return tokens, offset
        messages = row.get("messages") or [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["completion"]},
        ]
        prompt, answered = messages[:-1], messages[-1].get("role") == "assistant"
        start = answer_start(
            Rendered(tokens, text_of(messages, row, False)),
            render(prompt, row, answered),
            lambda: render(prompt, row, False),
        )
        if start is None:
            raise WrongMaskError
        return tokens, start

    return masked


def tokenize_rows(rows: list[dict[str, Any]], process: Process, max_seq_length: int) -> Examples:
    """Every row through `process`. Raises OodatcaaError `data.format` naming every bad one; of
    those that can not be masked the first, and their number: the template is what is wrong."""
    items: list[Example] = []
    dropped: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    bad, unmasked = [], []
    lost = 0
    for number, row in enumerate(rows, start=1):
        try:
            tokens, offset = process(row)
        except WrongMaskError:
            unmasked.append(number)
            continue
        except Exception as error:  # noqa: BLE001 - templates raise whatever they like; all are shown
            bad.append(f"example {number}: {type(error).__name__}: {error}")
            continue
        if len(tokens) > max_seq_length:
            notes[TRUNCATED] += 1
            lost += len(tokens) - max_seq_length
        # Position 0 has nothing before it to be predicted from.
        example = Example(tuple(tokens[:max_seq_length]), max(offset, 1))
        if example.targets < 1:
            dropped[NO_TARGET] += 1
        else:
            items.append(example)
    if count := len(bad) + len(unmasked):
        if unmasked:
            bad.insert(0, f"example {unmasked[0]}: {WRONG_MASK} (examples: {len(unmasked)})")
        raise OodatcaaError("data.format", f"{count} examples can not be tokenised", details=bad)
    return Examples(tuple(items), dict(dropped), dict(notes), lost)


def arrange(examples: Sequence[Example], max_seq_length: int) -> Arrays:
    """Pad and align: input position t predicts token t + 1; padding carries no weight."""
    longest = max(len(e.tokens) for e in examples) - 1
    length = min(round_up(longest, PAD_TO), max_seq_length)
    inputs = np.zeros((len(examples), length), np.int32)
    rows: list[Integers] = []
    targets: list[Integers] = []
    for i, example in enumerate(examples):
        tokens = np.asarray(example.tokens, np.int32)
        inputs[i, : len(tokens) - 1] = tokens[:-1]
        rows.append(i * length + np.arange(example.offset - 1, len(tokens) - 1))
        targets.append(tokens[example.offset :])
    return Arrays(inputs, *pad_targets(np.concatenate(rows), np.concatenate(targets)))


def pad_targets(
    rows: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """`rows`, `targets` and `weights` of Arrays, filled up with targets without weight."""
    spare = round_up(len(targets), TARGETS_TO) - len(targets)
    return (
        np.pad(rows, (0, spare)).astype(np.int32),
        np.pad(targets, (0, spare)),
        np.pad(np.ones(len(targets), np.float32), (0, spare)),
    )


def epoch_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch as example indices: shuffled, similar lengths together.

    Every example occurs exactly once, except that a last batch which is not full is filled from
    the epoch's start (one shape less to compile for).
    """
    random = np.random.default_rng((seed, epoch))
    shuffled = random.permutation(len(lengths)).tolist()
    if spare := -len(shuffled) % batch_size:
        shuffled += [shuffled[i % len(lengths)] for i in range(spare)]
    size = batch_size * max(1, min(POOL, len(shuffled) // (POOLS * batch_size)))
    batches = []
    for start in range(0, len(shuffled), size):
        pool = sorted(shuffled[start : start + size], key=lambda i: lengths[i])
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    return [batches[i] for i in random.permutation(len(batches)).tolist()]


def training_batches(
    dataset: Sequence[Example], batch_size: int, seed: int, start: int = 0, window: int = 1
) -> Iterator[tuple[list[Example], float]]:
    """Endless, from batch `start` on: the examples of a batch, and its share.

    `window` batches are accumulated into one update.
    """
    order = _order([len(e.tokens) for e in dataset], batch_size, seed, start)
    while True:
        chosen = [[dataset[i] for i in next(order)] for _ in range(window)]
        counts = [sum(e.targets for e in examples) for examples in chosen]
        yield from zip(chosen, shares(counts), strict=True)


def shares(counts: Sequence[int]) -> list[float]:
    """What each of the batches that are accumulated into one update weighs, 1 on average.

    Giving each of them the same weight is not what one large batch would do when they have
    different numbers of target tokens (`counts`).
    """
    return [len(counts) * count / sum(counts) for count in counts]


def _order(lengths: Sequence[int], batch_size: int, seed: int, start: int) -> Iterator[list[int]]:
    epoch, skip = divmod(start, -(-len(lengths) // batch_size))
    while True:
        yield from epoch_order(lengths, batch_size, seed, epoch)[skip:]
        epoch, skip = epoch + 1, 0


def validation_batches(
    dataset: Sequence[Example], batch_size: int, seed: int
) -> Iterator[Sequence[Example]]:
    """Every example once, in the same random order every time."""
    ordered = sorted(dataset, key=lambda e: len(e.tokens))
    firsts = np.arange(0, len(ordered), batch_size)
    # Shuffled: a validation of a few batches must not be one of the shortest examples.
    for first in np.random.default_rng(seed).permutation(firsts):
        yield ordered[first : first + batch_size]


def segments(start: int, params: QLoRA) -> list[tuple[int, int, int]]:
    """(first iteration, iterations, accumulated into one update) of each part of a run.

    mlx-lm drops an accumulation that is not full at the end; here it is a part of its own.
    """
    full = params.iters - params.iters % params.grad_accumulation_steps
    parts = [(start, full - start, params.grad_accumulation_steps)]
    tail = params.iters - max(start, full)
    parts.append((max(start, full), tail, tail))
    return [part for part in parts if part[1] > 0]


def round_up(value: int, step: int) -> int:
    return -(-value // step) * step
