"""`make bench-need-less`: peak above the weights and speed beside stock `mlx_lm.lora`.

The same step for all: a random 4-bit model with the vocabulary of Qwen2.5 (151,936) and one row of
2,048 tokens, loss on every one. Scales are float32: MLX emulates half precision on a CPU, and stock
takes an hour a step then. Stock's cross entropy holds the logits several times. The table goes into
docs/benchmarks.md with `--write`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
from memory import Folders
from page import measured_with, write_section
from random_model import config, write_model

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import RunStatus, TrainSpec
from oodatcaa.kit.machine import total_memory
from oodatcaa.training.backend import MlxBackend
from oodatcaa.training.children import ChildSettings, run_child
from oodatcaa.training.forecast import ProbeCache
from oodatcaa.training.metrics import read_metrics
from oodatcaa.training.protocol import LORA_CONFIG_FILE, METRICS_FILE
from oodatcaa.training.reservation import Reservations
from oodatcaa.training.runs import RunStore

STOCK = Path(__file__).with_name("train_sides.py")
VOCABULARY, LENGTH, LAYERS, HIDDEN = 151_936, 2048, 2, 256
MODEL = config("qwen2", HIDDEN, LAYERS, 4, 2, 768, VOCABULARY, tied=True)
STEPS = 2
GOAL = 0.25
"""Of stock's peak above the weights."""


@dataclass(frozen=True)
class Side:
    """Bytes, and the seconds of its last step: the first one also makes what later ones find."""

    mlx_peak: int
    process_peak: int
    seconds: float


class Bench:
    """The work, and a way to give it to each side."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = write_model(root / "model", MODEL, floats=np.float32)
        self.data = root / "data"
        self.data.mkdir()
        for split, words in (("train", LENGTH), ("valid", 4)):
            line = json.dumps({"text": "0123456789 " * words})
            (self.data / f"{split}.jsonl").write_text(f"{line}\n" * STEPS, encoding="utf-8")
        self.weights = sum(path.stat().st_size for path in self.model.glob("*.safetensors"))

    def params(self, *, checkpoint: bool) -> QLoRA:
        return QLoRA(
            num_layers=-1, batch_size=1, max_seq_length=LENGTH, iters=STEPS, mask_prompt=False,
            val_batches=1, steps_per_eval=1000, save_every=1000, grad_checkpoint=checkpoint,
        )  # fmt: skip

    def ours(self, name: str, *, checkpoint: bool, fast: bool = True) -> tuple[Side, Path]:
        backend = MlxBackend(
            RunStore(self.root / name),
            Folders(),
            reservations=Reservations(self.root / "ledger"),
            probes=ProbeCache(self.root / "probes"),
            settings=ChildSettings(fast_cpu=fast),
        )
        spec = TrainSpec(
            model=str(self.model),
            data_dir=str(self.data),
            params=self.params(checkpoint=checkpoint),
            memory_limit_bytes=total_memory(),
        )
        run = backend.train(spec)
        if run.status is not RunStatus.FINISHED:
            raise SystemExit(f"our run failed: {run.failure}")
        folder = backend.runs.folder(run)
        last = read_metrics(folder / METRICS_FILE).train[-1]
        seconds = last.tokens / (last.tokens_per_second or 1.0)
        found = Side(run.mlx_peak_bytes or 0, run.process_peak_bytes or 0, seconds)
        return found, folder / LORA_CONFIG_FILE

    def stock(self, name: str, options: Path) -> Side:
        """`mlx_lm.lora` as it is installed, with our run's options."""
        folder = self.root / name
        folder.mkdir()
        given = yaml.safe_load(options.read_text(encoding="utf-8"))
        given |= {"steps_per_report": 1, "adapter_path": str(folder / "adapters")}
        own = folder / "stock.yaml"
        own.write_text(yaml.safe_dump(given), encoding="utf-8")
        work = {"config": str(own), "threads": os.cpu_count() or 1}
        (folder / "work.json").write_text(json.dumps(work), encoding="utf-8")
        argv = [sys.executable, str(STOCK), "stock", str(folder)]
        ended = run_child(argv, folder=folder, log=folder / "log", limit=total_memory())
        if ended.exit_code:
            tail = (folder / "log").read_text(encoding="utf-8")[-2000:]
            raise SystemExit(f"stock ended with {ended.exit_code}:\n{tail}")
        found: dict[str, Any] = json.loads((folder / "answer.json").read_text(encoding="utf-8"))
        return Side(found["mlx_peak"], ended.peak_bytes, statistics.median(found["seconds"]))


def measure(bench: Bench) -> str:
    rows, verdicts = [], []
    for checkpoint in (False, True):
        with_it = ", `grad_checkpoint`" if checkpoint else ""
        key = "-again" if checkpoint else ""
        ours, options = bench.ours(f"ours{key}", checkpoint=checkpoint)
        stock = bench.stock(f"stock{key}", options)
        sides = {f"stock `mlx_lm.lora`{with_it}": stock, f"oodatcaa{with_it}": ours}
        if not checkpoint:
            name = "oodatcaa, `fast_cpu = false`"
            sides[name], _ = bench.ours("slow", checkpoint=False, fast=False)
        for name, side in sides.items():
            above, of = side.mlx_peak - bench.weights, stock.mlx_peak - bench.weights
            rows.append(
                f"| {name} | {above / 1e9:.2f} | {above / of:.2f}x | {side.process_peak / 1e9:.2f} "
                f"| {side.seconds:.1f} | {stock.seconds / side.seconds:.2f}x |"
            )
            print(rows[-1], flush=True)
            if side is not stock:
                met = "met" if above <= GOAL * of and side.seconds <= stock.seconds else "missed"
                verdicts.append(f"{name}: {met}")
    lines = "\n".join(rows)
    return f"""## Memory and speed at a large vocabulary

{measured_with("make bench-need-less", ("mlx", "mlx-lm"))}

A random 4-bit Qwen2 with float32 scales ({LAYERS} blocks of hidden size {HIDDEN},
{bench.weights / 1e6:.0f} MB), vocabulary {VOCABULARY:,}, LoRA of rank 16 on every block,
1 x {LENGTH:,} tokens with loss on every one. Peaks by MLX's counter, above the weights as stored;
the last of {STEPS} steps (stock: the median). `fast_cpu = false` computes with the same products as
stock does: what differs there is how the loss is computed, as on a GPU, which is not measured here.

| who | peak above the weights, GB | of stock's | process tree, GB | s a step | times as fast |
| --- | ---: | ---: | ---: | ---: | ---: |
{lines}

Goal: at most a quarter of stock's peak above the weights, and no slower. {"; ".join(verdicts)}."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-need-less-") as name:
        text = measure(Bench(Path(name).resolve()))
    print(text)
    if given.write:
        write_section("bench-need-less", text)


if __name__ == "__main__":
    main()
