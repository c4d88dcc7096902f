"""`make bench-packing-quality`: do packed rows train as well as padded batches?

The demo's model on the demo's data, as many updates of about as many examples on both sides (in
all about as many as the demo trains on), the same seeds. The loss on the test split, which was
never trained on, is that of the fixed judge; the verdict is the one that any A and B get. Prints
Markdown; `--write` puts it into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from page import measured_with, write_section

from oodatcaa.domain.comparison import Comparison, compare
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import GB, RunStatus, TrainSpec
from oodatcaa.training.datasets import DataStore
from oodatcaa.training.examples import Examples, read_split, training_batches
from oodatcaa.training.mlx.blas import preload
from oodatcaa.training.models import ModelStore
from oodatcaa.training.packing import packed_batches

ROW, ROWS, EXAMPLES = 492, 2, 6
"""Of the demo's 1,200 examples two such rows hold 6.0: both sides have 200 batches in an epoch."""
LIMIT = 16 * GB
SIDES = ("padded", "packed")


@dataclass(frozen=True)
class Trained:
    """One run: the mean loss of every test example, and what it was trained on."""

    losses: tuple[float, ...]
    examples: int
    tokens: int
    processor: float


class Bed:
    """The demo's model and data."""

    def __init__(self, root: Path, steps: int) -> None:
        self.root, self.steps = root, steps
        self.model = ModelStore().resolve("demo").path_or_hub
        self.data = Path(DataStore(root / "data").build("demo", model_path=self.model).path)
        self.test = self._read("test")
        self.tokens = [example.targets for example in self.test.items]
        self.base = self._losses(None)

    def train(self, side: str, seed: int) -> Trained:
        from oodatcaa.training.mlx.trainer import Run

        packing = side == "packed"
        params = QLoRA(
            batch_size=ROWS if packing else EXAMPLES,
            packing=packing,
            max_seq_length=ROW,
            iters=self.steps,
            learning_rate=1e-3,
            seed=seed,
            val_batches=0,
            save_every=self.steps + 1,
        )
        spec = TrainSpec(model=self.model, data_dir=str(self.data), params=params)
        with tempfile.TemporaryDirectory(dir=self.root) as made:
            run = Run(Path(made), spec, None)
            before = time.process_time()
            result = run.train()
            used = time.process_time() - before
            if result.status is not RunStatus.FINISHED:
                raise SystemExit(f"{side}, seed {seed}: {result.failure}")
            losses = self._losses(Path(made) / "adapters")
        return Trained(losses, _seen(run.examples, params), result.trained_tokens or 0, used)

    def _read(self, split: str) -> Examples:
        from oodatcaa.training.mlx import setup
        from oodatcaa.training.mlx.batches import tokenize

        _, tokenizer = setup.load_base(self.model)
        rows = read_split(self.data / f"{split}.jsonl")
        return tokenize(rows, tokenizer, mask_prompt=True, max_seq_length=ROW)

    def _losses(self, adapter: Path | None) -> tuple[float, ...]:
        """As `evaluate` measures them, without the base each time."""
        from oodatcaa.training.mlx import setup
        from oodatcaa.training.mlx.evaluate import example_losses

        network, _ = setup.load_base(self.model)
        if adapter is not None:
            setup.put_on_adapter(network, adapter)
        return tuple(example_losses(network, self.test.items, ROW, LIMIT))

    def mean(self, losses: Sequence[float]) -> float:
        """Over all target tokens."""
        return sum(x * n for x, n in zip(losses, self.tokens, strict=True)) / sum(self.tokens)


def _seen(examples: Examples, params: QLoRA) -> int:
    where: tuple[Any, ...] = (params.batch_size, params.seed)
    if params.packing:
        rows = islice(packed_batches(examples.items, ROW, *where), params.iters)
        return sum(len(row) for batch, _ in rows for row in batch)
    return sum(
        len(batch) for batch, _ in islice(training_batches(examples.items, *where), params.iters)
    )


def measure(bed: Bed, seeds: int) -> dict[str, list[Trained]]:
    found: dict[str, list[Trained]] = {side: [] for side in SIDES}
    for seed in range(seeds):
        for side in SIDES:
            one = bed.train(side, seed)
            found[side].append(one)
            print(
                f"{side}, seed {seed}: test loss {bed.mean(one.losses):.4f}, "
                f"{one.examples} examples, {one.processor:.0f} processor s",
                file=sys.stderr,
                flush=True,
            )
    return found


def section(bed: Bed, found: dict[str, list[Trained]]) -> str:
    padded, packed = ([one.losses for one in found[side]] for side in SIDES)
    seeds = len(padded)
    rows = []
    for side, batch in zip(SIDES, (f"{EXAMPLES} examples", f"{ROWS} rows of {ROW}"), strict=True):
        runs = found[side]
        losses = [bed.mean(one.losses) for one in runs]
        rows.append(
            f"| {side}, {batch} | {fmean(one.examples for one in runs):.0f} "
            f"| {fmean(one.tokens for one in runs):.0f} "
            f"| {', '.join(f'{loss:.4f}' for loss in losses)} | {fmean(losses):.4f} "
            f"| {fmean(one.processor for one in runs):.0f} |"
        )
    stamp = measured_with("make bench-packing-quality", ("mlx", "mlx-lm"))
    return "\n".join(
        [
            "## Packed rows: do they train as well",
            "",
            stamp,
            "",
            f"The demo's model, data, rank and learning rate (1e-3), {bed.steps} updates of "
            f"about {EXAMPLES} examples, {seeds} seeds on each side. Mean loss of the "
            f"{len(bed.tokens)} test examples ({sum(bed.tokens)} target tokens), which nobody "
            f"trained on; the base model's is {bed.mean(bed.base):.4f}. Losses do not depend on "
            "how busy the machine is; processor seconds of a run do so less than its time.",
            "",
            "| batches | examples | target tokens | test loss, by seed | mean | processor s |",
            "| --- | ---: | ---: | --- | ---: | ---: |",
            *rows,
            "",
            _said(compare(padded, packed, bed.tokens), compare(packed, padded, bed.tokens)),
        ]
    )


def _said(packed: Comparison, padded: Comparison) -> str:
    """`packed` asks whether packed rows are better, `padded` the opposite."""
    seeds = "no interval over the seeds"
    if packed.seeds_low is not None and packed.seeds_high is not None:
        seeds = f"{packed.seeds_low:+.4f} to {packed.seeds_high:+.4f} over the seeds"
    return (
        f"Packed better than padded: **{packed.verdict}** ({packed.reason}). Padded better than "
        f"packed: **{padded.verdict}** ({padded.reason}). The test loss without packing minus that "
        f"with it: {packed.improvement:+.4f} (95 %: {seeds}, {packed.examples_low:+.4f} to "
        f"{packed.examples_high:+.4f} over the test examples)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=27)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    given = parser.parse_args()
    preload()
    with tempfile.TemporaryDirectory(prefix="bench-packing-quality-") as name:
        bed = Bed(Path(name), given.steps)
        print(f"the base: test loss {bed.mean(bed.base):.4f}", file=sys.stderr, flush=True)
        found = measure(bed, given.seeds)
        text = section(bed, found)
    print(text)
    if given.write:
        write_section("packing-quality", text)


if __name__ == "__main__":
    main()
