"""`make bench-packing`: short examples packed without attention across them, against bucketing.

The same examples of log-normal lengths, forward and backward through a random model with LoRA:
batches of examples of about one length, padded, as `train` makes them; and rows filled with whole
examples under a block-diagonal mask. Rotary attention sees distances alone, so that positions need
not begin again inside a row. The table goes into docs/benchmarks.md with `--write`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from oodatcaa.training.mlx.blas import preload

preload()  # before mlx

import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402
import mlx_lm.models.llama as llama  # noqa: E402
import numpy as np  # noqa: E402
from mlx_lm import load  # noqa: E402
from mlx_lm.tuner.utils import linear_to_lora_layers  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent))
from page import measured_with, write_section  # noqa: E402
from random_model import config, write_model  # noqa: E402

from oodatcaa.training.examples import PAD_TO, epoch_order  # noqa: E402

MODEL = config("llama", 256, 4, 4, 4, 704, 4000, tied=True, bits=None)
EXAMPLES, BATCH, ROW = 64, 4, 512
ROUNDS = 1
Rows = list[list[int]]
"""Lengths of the examples of a row."""


def lengths() -> list[int]:
    drawn = np.random.default_rng(0).lognormal(4.4, 0.7, EXAMPLES)
    return [int(n) for n in np.clip(drawn, 8, ROW)]


def bucketed(found: list[int]) -> list[Rows]:
    return [[[found[i]] for i in batch] for batch in epoch_order(found, BATCH, 0, 0)]


def packed(found: list[int], per_batch: int) -> list[Rows]:
    """First-fit decreasing; `per_batch` rows are one batch."""
    rows: Rows = []
    for length in sorted(found, reverse=True):
        home = next((row for row in rows if sum(row) + length <= ROW), None)
        if home is None:
            rows.append([length])
        else:
            home.append(length)
    return [rows[first : first + per_batch] for first in range(0, len(rows), per_batch)]


def width(batch: Rows) -> int:
    return -(-max(sum(row) for row in batch) // PAD_TO) * PAD_TO


def mask_of(batch: Rows) -> mx.array:
    """True where a position may look: backwards, in its own example. [rows, 1, width, width]"""
    wide = width(batch)
    owner = np.full((len(batch), wide), -1)
    for place, row in enumerate(batch):
        owner[place, : sum(row)] = np.repeat(np.arange(len(row)), row)
    own = owner[:, :, None] == owner[:, None, :]
    mask: mx.array = mx.array((own & np.tril(np.ones((wide, wide), bool)))[:, None])
    return mask


def seconds(network: Any, batches: list[Rows], *, masked: bool) -> tuple[float, float]:
    """Wall and processor seconds of all batches, forward and backward."""
    stock = llama.create_attention_mask

    def loss(model: Any, tokens: mx.array) -> mx.array:
        return nn.losses.cross_entropy(model(tokens), tokens).mean()

    step = nn.value_and_grad(network, loss)
    wall, processor = time.monotonic(), time.process_time()
    try:
        for batch in batches:
            if masked:
                mask = mask_of(batch)
                llama.create_attention_mask = lambda *_, **__: mask  # noqa: B023
            mx.eval(step(network, mx.zeros((len(batch), width(batch)), mx.int32)))
    finally:
        llama.create_attention_mask = stock
    return time.monotonic() - wall, time.process_time() - processor


def table() -> str:
    found = lengths()
    ways: dict[str, tuple[list[Rows], bool]] = {
        f"buckets of {BATCH} (as `train` does)": (bucketed(found), False),
        f"packed, 1 row of {ROW}": (packed(found, 1), True),
        f"packed, 2 rows of {ROW}": (packed(found, 2), True),
    }
    with tempfile.TemporaryDirectory(prefix="bench-packing-") as name:
        network: Any = load(str(write_model(Path(name) / "model", MODEL)))[0]
    network.set_dtype(mx.float32)
    network.freeze()
    linear_to_lora_layers(network, -1, {"rank": 8, "scale": 2.0, "dropout": 0.0})
    network.train()
    best: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, (batches, masked) in ways.items():
            best[name].append(seconds(network, batches, masked=masked))
    lines = [
        "## Packing short examples",
        "",
        measured_with("make bench-packing", ("mlx", "mlx-lm")),
        "",
        f"{EXAMPLES} examples of log-normal lengths ({min(found)} to {max(found)}, {sum(found)} "
        "tokens), one pass forward and backward of a random float32 Llama (4 blocks of hidden size "
        f"256, LoRA of rank 8). {ROUNDS} pass of each.",
        "",
        "| batches | steps | padding efficiency | attention scores, millions | wall s "
        "| processor s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, (batches, _) in ways.items():
        positions = sum(len(batch) * width(batch) for batch in batches)
        scores = sum(len(batch) * width(batch) ** 2 for batch in batches) / 1e6
        wall = min(one for one, _ in best[name])
        processor = min(one for _, one in best[name])
        lines.append(
            f"| {name} | {len(batches)} | {sum(found) / positions:.2f} | {scores:.1f} "
            f"| {wall:.2f} | {processor:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    given = parser.parse_args()
    text = table()
    print(text)
    if given.write:
        write_section("bench-packing", text)


if __name__ == "__main__":
    main()
