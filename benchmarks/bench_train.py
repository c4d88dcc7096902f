"""Training speed and memory on this machine's CPU: ours, PEFT on PyTorch, stock mlx_lm.

The same work for all: the 135M demo model, LoRA on the last 8 blocks, 4 rows of 128 tokens, loss on
every token. Interleaved, so that a busy machine is busy for all of them. Ours runs also for several
epochs with `cache_frozen`: its steps of the first epoch and of later ones are told apart. Prints
Markdown;
`--write` puts it into docs/benchmarks.md. PEFT runs in .venv-hf (`make test-hf` makes it).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from page import measured_with, write_section

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import RunStatus, TrainSpec
from oodatcaa.kit.machine import total_memory
from oodatcaa.kit.process import run_command
from oodatcaa.training.backend import MlxBackend
from oodatcaa.training.children import run_child
from oodatcaa.training.metrics import read_metrics
from oodatcaa.training.models import ModelStore
from oodatcaa.training.protocol import LORA_CONFIG_FILE, METRICS_FILE
from oodatcaa.training.runs import RunStore

SIDES = Path(__file__).with_name("train_sides.py")
HF = Path(__file__).parents[1] / ".venv-hf" / "bin" / "python"
BATCH, LENGTH, LAYERS, RANK, ALPHA, RATE = 4, 128, 8, 16, 32, 1e-4
WARM = 2
"""First steps of a process compile and fill caches: they are left out."""
STOCK_STEPS = 2
EXAMPLES, EPOCHS = 32, 3
"""Of the training split, and how often a run with `cache_frozen` sees them."""
WORDS = [
    "def",
    "return",
    "for",
    "value",
    "in",
    "range",
    "list",
    "index",
    "count",
    "sum",
    "total",
    "name",
    "text",
    "line",
    "file",
    "data",
]


class Folders:
    """Models are folders here."""

    def resolve(self, model: str) -> Path:
        return Path(model)


@dataclass(eq=False)
class Side:
    """Seconds of every measured step, over all rounds, and the largest peak."""

    seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    peak: int = 0

    @property
    def rate(self) -> float:
        return self.tokens / statistics.median(self.seconds)


@dataclass
class Sides:
    """`first` and `later`: the epochs of the runs with `cache_frozen` and `dense_weights`."""

    dense: Side = field(default_factory=Side)
    plain: Side = field(default_factory=Side)
    first: Side = field(default_factory=Side)
    later: Side = field(default_factory=Side)
    peft: Side = field(default_factory=Side)
    stock: Side = field(default_factory=Side)

    @property
    def epochs(self) -> float:
        """Tokens a second over all epochs, each at its median step."""
        first, later = (statistics.median(side.seconds) for side in (self.first, self.later))
        return EPOCHS * self.first.tokens / (first + (EPOCHS - 1) * later)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8, help="measured steps a round")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    if not HF.is_file():
        raise SystemExit(f"{HF} is missing: make test-hf")
    with tempfile.TemporaryDirectory(prefix="bench-train-") as name:
        text = measure(Path(name).resolve(), asked.rounds, asked.steps)
    print(text)
    if asked.write:
        write_section("bench-train", text)


def measure(root: Path, rounds: int, steps: int) -> str:
    header = measured_with("make bench-train", ["mlx", "mlx-lm"], extra=hf_versions())
    bench = Bench(root, steps + WARM)
    sides = Sides()
    for number in range(rounds):
        bench.ours(sides.dense, dense_weights=True)
        bench.peft(sides.peft)
        bench.ours(sides.plain)
        bench.epochs(sides.first, sides.later)
        if number == 0:
            bench.stock(sides.stock)
    return report(header, sides, bench.overhead(), rounds)


class Bench:
    """The work, and a way to give it to each side."""

    def __init__(self, root: Path, steps: int) -> None:
        self.root, self.steps, self.count = root, steps, 0
        self.model = ModelStore().resolve("demo").path_or_hub
        self.data = root / "data"
        self.data.mkdir()
        chance = random.Random(0)
        for split in ("train", "valid"):
            lines = [
                json.dumps({"text": " ".join(chance.choices(WORDS, k=220))})
                for _ in range(EXAMPLES)
            ]
            (self.data / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        self.backend = MlxBackend(RunStore(root / "runs"), Folders())
        self.dense = root / "dense"
        self.start("dense", HF, {})

    def spec(self, iters: int, **options: bool) -> TrainSpec:
        params = QLoRA(
            rank=RANK, alpha=ALPHA, num_layers=LAYERS, batch_size=BATCH, max_seq_length=LENGTH,
            iters=iters, learning_rate=RATE, mask_prompt=False, val_batches=1,
            steps_per_eval=100_000, save_every=100_000, **options,
        )  # fmt: skip
        return TrainSpec(model=self.model, data_dir=str(self.data), params=params)

    def start(self, side: str, python: Path, more: dict[str, Any]) -> tuple[Path, int]:
        """Its folder and its peak, by the same watcher that watches our own runs."""
        self.count += 1
        folder = self.root / f"{self.count}-{side}"
        folder.mkdir()
        work = {
            **{"model": self.model, "dense": str(self.dense), "data": str(self.data)},
            **{"batch": BATCH, "length": LENGTH, "layers": LAYERS, "rank": RANK, "alpha": ALPHA},
            **{"rate": RATE, "steps": self.steps, "threads": os.cpu_count() or 1},
            **more,
        }
        (folder / "work.json").write_text(json.dumps(work))
        argv = [str(python), str(SIDES), side, str(folder)]
        ended = run_child(argv, folder=folder, log=folder / "log", limit=total_memory())
        if ended.exit_code:
            tail = (folder / "log").read_text()[-2000:]
            raise SystemExit(f"{side} ended with {ended.exit_code}:\n{tail}")
        return folder, ended.peak_bytes

    def ours(self, side: Side, **options: bool) -> None:
        self._ours(self.steps, {side: slice(WARM, None)}, **options)

    def epochs(self, first: Side, later: Side) -> None:
        each = EXAMPLES // BATCH
        sides = {first: slice(WARM, each), later: slice(each, None)}
        self._ours(EPOCHS * each, sides, dense_weights=True, cache_frozen=True)

    def _ours(self, steps: int, sides: dict[Side, slice], **options: bool) -> None:
        run = self.backend.train(self.spec(steps, **options))
        if run.status is not RunStatus.FINISHED:
            raise SystemExit(f"our run failed: {run.failure}")
        metrics = read_metrics(self.backend.runs.folder(run) / METRICS_FILE).train
        for side, which in sides.items():
            side.seconds += [m.tokens / m.tokens_per_second for m in metrics[which]]
            side.tokens = metrics[-1].tokens
            side.peak = max(side.peak, run.process_peak_bytes or 0)
        self.config = self.backend.runs.folder(run) / LORA_CONFIG_FILE

    def peft(self, side: Side) -> None:
        folder, peak = self.start("peft", HF, {})
        found = json.loads((folder / "answer.json").read_text())
        side.seconds += found["seconds"][WARM:]
        side.tokens, side.peak = found["tokens"], max(side.peak, peak)

    def stock(self, side: Side) -> None:
        options = yaml.safe_load(self.config.read_text())
        options |= {
            "iters": STOCK_STEPS,
            "steps_per_report": 1,
            "adapter_path": str(self.root / "stock"),
        }
        config = self.root / "stock.yaml"
        config.write_text(yaml.safe_dump(options))
        folder, peak = self.start("stock", Path(sys.executable), {"config": str(config)})
        found = json.loads((folder / "answer.json").read_text())
        side.seconds, side.tokens = found["seconds"], found["tokens"]
        side.peak = peak

    def overhead(self) -> dict[str, Any]:
        per, pairs = 2, 6
        spec = self.spec(2 * per * pairs, dense_weights=True)
        more = {"spec": spec.model_dump(mode="json"), "per": per}
        folder, _ = self.start("bare", Path(sys.executable), more)
        found: dict[str, Any] = json.loads((folder / "answer.json").read_text())
        return found


def hf_versions() -> list[str]:
    code = (
        "import importlib.metadata as m\n"
        "print(', '.join(f'{n} {m.version(n)}' for n in ('torch', 'transformers', 'peft')))"
    )
    return [run_command([str(HF), "-c", code]).tail.strip()]


def report(header: str, sides: Sides, bare: dict[str, Any], rounds: int) -> str:
    ours, peft, stock = sides.dense, sides.peft, sides.stock
    rows = [
        _row("oodatcaa, `dense_weights`", ours, peft),
        _row("oodatcaa, `dense_weights`, `cache_frozen`: first epoch", sides.first, peft),
        _row("oodatcaa, `dense_weights`, `cache_frozen`: later epochs", sides.later, peft),
        _row("oodatcaa", sides.plain, peft),
        _row("PEFT on PyTorch, float32, MKL-DNN", peft, peft),
        _row("stock `mlx_lm.lora` as installed", stock, peft),
    ]
    table = "\n".join(rows)
    epochs = sides.epochs
    return f"""## Training speed on a CPU

{header}

The 135M demo model, LoRA of rank {RANK} on {LAYERS} blocks, {BATCH} x {LENGTH} tokens, loss on
every token, AdamW. {rounds} rounds, interleaved; the median step of each without its first {WARM}
(stock: {len(stock.seconds)} steps, one round). Stock trains beside the 4-bit weights, PEFT beside
the same weights in float32; ours beside the 4-bit weights and, with `dense_weights`, float32 copies
of the blocks' matrices. With `cache_frozen` an example that comes again costs the trained blocks
alone; {EPOCHS} epochs of {EXAMPLES} examples. Peaks are of the process tree, by the same watcher.

| who | seconds a step | tokens a second | peak memory | speed against PEFT | memory against PEFT |
| --- | --- | --- | --- | --- | --- |
{table}

Against PEFT (goal: 1.0x at no more memory): with both options, {EPOCHS} epochs at each epoch's
median step, **{epochs / peft.rate:.2f}x** its speed ({epochs:.1f} tokens a second) with
{sides.later.peak / peft.peak:.2f}x its memory; where no example comes twice
**{ours.rate / peft.rate:.2f}x** with {ours.peak / peft.peak:.2f}x, without either option
{sides.plain.rate / peft.rate:.2f}x with {sides.plain.peak / peft.peak:.2f}x. Against stock:
{ours.rate / stock.rate:.0f}x with `dense_weights`, {sides.plain.rate / stock.rate:.0f}x without
(goal: 40x), {epochs / stock.rate:.0f}x over {EPOCHS} epochs with both.

Over a bare `mlx_lm.tuner.trainer.train` with the same mathematics: what we do after a
step takes {100 * bare["inside"]:.2f} % of a step (median, timed inside; goal: 1 %). The same
trainer with and without it, in turn: {bare["ratio"]:.3f}x the time (median of {bare["pairs"]}
pairs of {bare["lowest"]:.3f}x to {bare["highest"]:.3f}x)."""


def _row(name: str, side: Side, peft: Side) -> str:
    step = statistics.median(side.seconds)
    return (
        f"| {name} | {step:.2f} | {side.rate:.1f} | {side.peak / 1e9:.2f} GB | "
        f"{side.rate / peft.rate:.2f}x | {side.peak / peft.peak:.2f}x |"
    )


if __name__ == "__main__":
    main()
