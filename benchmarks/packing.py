"""`make bench-packing`: `train` with packed rows and without, on the same short examples.

Two epochs of a random model on texts of log-normal lengths, through the real path: run store, child
process, memory gate, checkpoints. Sides are interleaved and the fastest run of each counts; every
run that ends is said at once. Sized to end within minutes on two cores that do nothing else. The
table goes into docs/benchmarks.md with `--write`.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from memory import Folders
from page import measured_with, write_section
from random_model import config, write_model

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import GB, RunRecord, RunStatus, TrainSpec
from oodatcaa.training.backend import MlxBackend
from oodatcaa.training.examples import Example, arrange, training_batches
from oodatcaa.training.forecast import ProbeCache
from oodatcaa.training.packing import arrange_rows, blocks_in, packed_batches, packed_order
from oodatcaa.training.reservation import Reservations
from oodatcaa.training.runs import RunStore
from oodatcaa.training.tokens import known_lengths

MODEL = config("llama", 256, 4, 4, 4, 704, 4000, tied=True)
ROW, EPOCHS, ROUNDS = 512, 2, 2
SETS = (64, 128)
SIDES = {"padded, 4 examples": (4, False), "packed, 1 row": (1, True), "packed, 2 rows": (2, True)}


@dataclass(frozen=True)
class Work:
    """What a side computes: the same for every run of it."""

    params: QLoRA
    efficiency: float
    scores: float


def write_data(folder: Path, examples: int) -> Path:
    """Texts of log-normal lengths. No tokenizer joins digits and letters that alternate."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(4.4, 0.7, examples), 8, ROW - 8).astype(int)
    lines = [
        json.dumps({"text": " ".join(map(str, random.integers(0, 10, n // 2)))}) for n in lengths
    ]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "valid.jsonl").write_text(lines[0] + "\n", encoding="utf-8")
    return folder


def work_of(lengths: list[int], batch: int, packing: bool) -> Work:
    """`EPOCHS` epochs of examples of these lengths."""
    data = [Example((0,) * length, 1) for length in lengths]
    sizes = [length - 1 for length in lengths]
    if packing:
        iters = sum(len(packed_order(sizes, ROW, batch, 0, epoch)) for epoch in range(EPOCHS))
        chosen = islice(packed_batches(data, ROW, batch, 0), iters)
        owners = [arrange_rows(rows, ROW).owners for rows, _ in chosen]
        shapes = [one.shape for one in owners]
        scores = sum(map(computed_scores, owners))
    else:
        iters = EPOCHS * -(-len(data) // batch)
        padded = islice(training_batches(data, batch, 0), iters)
        shapes = [arrange(examples, ROW).inputs.shape for examples, _ in padded]
        scores = sum(rows * length**2 for rows, length in shapes)
    params = QLoRA(
        rank=8,
        num_layers=-1,
        batch_size=batch,
        packing=packing,
        max_seq_length=ROW,
        mask_prompt=False,
        iters=iters,
        steps_per_eval=10 * iters,
        save_every=10 * iters,
        val_batches=1,
    )
    positions = sum(rows * length for rows, length in shapes)
    return Work(params, EPOCHS * sum(sizes) / positions, scores / 1e6)


def computed_scores(owners: np.ndarray[Any, Any]) -> int:
    """Of one head, in the forward pass of a packed batch."""
    blocks = blocks_in(owners)
    if blocks is None:
        return owners.size * owners.shape[1]
    return sum(block.scores for block in blocks)


def train(work: Path, model: Path, data: Path, params: QLoRA) -> RunRecord:
    backend = MlxBackend(
        RunStore(work / "runs"),
        Folders(),
        reservations=Reservations(work / "ledger"),
        probes=ProbeCache(work / "probes"),
    )
    spec = TrainSpec(model=str(model), data_dir=str(data), params=params, memory_limit_bytes=8 * GB)
    run = backend.train(spec)
    if run.status is not RunStatus.FINISHED:
        raise SystemExit(f"a run did not finish: {run.failure}")
    return run


def processor() -> float:
    """Seconds of all children so far, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def seconds_of(run: RunRecord) -> float:
    """Of the run's steps, without loading and validation."""
    return (run.trained_tokens or 0) / (run.tokens_per_second or 1.0)


def measured(work: Path, model: Path, examples: int) -> list[str]:
    data = write_data(work / f"data-{examples}", examples)
    lengths = [one.total for one in known_lengths(data, model).train]
    sides = {name: work_of(lengths, *side) for name, side in SIDES.items()}
    runs: dict[str, list[RunRecord]] = {name: [] for name in sides}
    used: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(ROUNDS):
        for name, side in sides.items():
            before = processor()
            runs[name].append(train(work, model, data, side.params))
            used[name].append(processor() - before)
            print(
                f"{examples} examples, round {number + 1} of {ROUNDS}, {name}: "
                f"{seconds_of(runs[name][-1]):.1f} s of steps, "
                f"{used[name][-1]:.1f} processor s",
                file=sys.stderr,
                flush=True,
            )
    base = min(map(seconds_of, runs[next(iter(sides))]))
    lines = []
    for name, side in sides.items():
        best = min(runs[name], key=seconds_of)
        seconds = seconds_of(best)
        peak = max(run.peak_memory_bytes or 0 for run in runs[name]) / 1e6
        steps = side.params.iters
        lines.append(
            f"| {examples} | {name} | {steps} | {EPOCHS * examples / steps:.1f} "
            f"| {side.efficiency:.2f} | {side.scores:.1f} | {seconds:.1f} "
            f"| {base / seconds:.2f} | {min(used[name]):.1f} | {peak:.0f} |"
        )
    return lines


def table(rows: list[str]) -> str:
    return "\n".join(
        [
            "## Packing short examples",
            "",
            measured_with("make bench-packing", ("mlx", "mlx-lm")),
            "",
            f"`train` of a random 4-bit Llama (4 blocks of hidden size 256, LoRA of rank 8 on all) "
            f"on texts of log-normal lengths, {EPOCHS} epochs, rows of at most {ROW} tokens. "
            f"Fastest of {ROUNDS} interleaved runs: seconds of the steps alone, "
            "processor seconds of the whole run.",
            "",
            "| examples | batches | steps | examples a step | positions that hold a token "
            "| attention scores, millions | s | times as fast | processor s | peak, MB |",
            "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *rows,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    given = parser.parse_args()
    rows: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bench-packing-") as name:
        work = Path(name)
        model = write_model(work / "model", MODEL)
        for examples in SETS:
            rows += measured(work, model, examples)
    text = table(rows)
    print(text)
    if given.write:
        write_section("bench-packing", text)


if __name__ == "__main__":
    main()
