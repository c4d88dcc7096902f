"""Does the A/B verdict call a configuration better than itself? Real runs, A/A.

Every side of a comparison is the same configuration trained with seeds of its own on a tiny model;
test losses are those of the fixed judge. "better" may be said at most 5 % of the time. The same
runs against one that trains for longer show that the verdict is not simply mute. Prints Markdown;
`--write` puts it into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

os.environ.setdefault("MKL_NUM_THREADS", "1")  # tiny products gain nothing from a second one

from page import measured_with, write_section

from oodatcaa.domain.comparison import Verdict, compare
from oodatcaa.domain.training import EvalRequest, RunStatus, TrainSpec
from oodatcaa.training.mlx.blas import preload

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny_model import make_tiny_data, make_tiny_model

ALLOWED = 0.05
CONFIGURATION = {
    **{"rank": 4, "alpha": 8, "num_layers": 1, "batch_size": 2, "max_seq_length": 64},
    **{"learning_rate": 0.01, "steps_per_eval": 1000, "val_batches": 1, "save_every": 1000},
}


class Bed:
    """A tiny model and data; trains a seed and has it judged."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = make_tiny_model(root / "model", layers=2)
        self.data = make_tiny_data(root / "data", 36)
        self.tokens: tuple[int, ...] = ()

    def losses(self, seed: int, iters: int) -> tuple[float, ...]:
        """The test loss of every example after training with this seed."""
        from oodatcaa.training.mlx.evaluate import evaluate
        from oodatcaa.training.mlx.trainer import Run

        with tempfile.TemporaryDirectory(dir=self.root) as made:
            spec = TrainSpec.model_validate(
                {
                    "model": str(self.model),
                    "data_dir": str(self.data),
                    "params": {**CONFIGURATION, "seed": seed, "iters": iters},
                }
            )
            result = Run(Path(made), spec, None).train()
            if result.status is not RunStatus.FINISHED:
                raise SystemExit(f"seed {seed}: {result.failure}")
            found = evaluate(
                EvalRequest(
                    model=str(self.model),
                    adapter_dir=str(Path(made) / "adapters"),
                    data_dir=str(self.data),
                    max_seq_length=64,
                    bootstrap_samples=1,
                )
            )
        self.tokens = found.per_example_tokens
        return found.per_example_adapter


def measure(bed: Bed, pairs: int, seeds: int, iters: int) -> tuple[Counter[str], Counter[str]]:
    """(verdicts of A/A, verdicts of the same against twice as many iterations)."""
    same: Counter[str] = Counter()
    other: Counter[str] = Counter()
    longer = [bed.losses(10**6 + n, 2 * iters) for n in range(seeds)]
    for number in range(pairs):
        first = 2 * seeds * number
        a = [bed.losses(first + n, iters) for n in range(seeds)]
        b = [bed.losses(first + seeds + n, iters) for n in range(seeds)]
        same[compare(a, b, bed.tokens, seed=number).verdict.value] += 1
        other[compare(a, longer, bed.tokens, seed=number).verdict.value] += 1
        print(f"{number + 1}/{pairs}: {dict(same)}", file=sys.stderr, flush=True)
    return same, other


def section(same: Counter[str], other: Counter[str], seeds: int, iters: int) -> str:
    pairs = sum(same.values())
    said = same[Verdict.BETTER.value]
    rows = "\n".join(
        f"| {verdict.value} | {same[verdict.value]} | {other[verdict.value]} |"
        for verdict in Verdict
    )
    stamp = measured_with("make bench-aa", ("mlx", "mlx-lm"))
    return (
        f"## A/B verdict\n\n{stamp}\n\n"
        f"{pairs} comparisons of real runs on a tiny model, {seeds} seeds on each side, every seed "
        f"used once, {iters} iterations. Identical configurations were called better "
        f"{said} times of {pairs} ({said / pairs:.1%}; allowed: {ALLOWED:.0%}).\n\n"
        "| verdict | A against A | A against twice the iterations |\n| --- | --- | --- |\n"
        f"{rows}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iters", type=int, default=8)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    preload()
    with tempfile.TemporaryDirectory(prefix="oodatcaa-aa-") as made:
        same, other = measure(Bed(Path(made)), given.pairs, given.seeds, given.iters)
    body = section(same, other, given.seeds, given.iters)
    print(body)
    if given.write:
        write_section("aa", body)
    if same[Verdict.BETTER.value] > ALLOWED * given.pairs:
        raise SystemExit("identical configurations were called better too often")


if __name__ == "__main__":
    main()
