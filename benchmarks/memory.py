"""`make bench-memory`: forecast against measured peak, over a grid of random models.

Each case is a real training run (the worker in its child, under the watch) of a model made on the
spot, at a batch that its probe never saw: the probe measures sizes of at most half its tokens.
The table goes into docs/benchmarks.md with `--write`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from page import measured_with, write_section
from random_model import config, write_model

from oodatcaa.domain.training import GB, MemoryEstimate, QLoRA, RunStatus, TrainSpec
from oodatcaa.training.backend import MlxBackend
from oodatcaa.training.forecast import ProbeCache
from oodatcaa.training.question import Question
from oodatcaa.training.reservation import Reservations
from oodatcaa.training.runs import RunStore

MODELS: dict[str, dict[str, Any]] = {
    "qwen2 tied": config("qwen2", 256, 4, 8, 2, 768, 16000, tied=True),
    "qwen2 untied": config("qwen2", 384, 3, 6, 2, 1024, 8000, tied=False),
    "llama tied": config("llama", 320, 6, 5, 5, 896, 4000, tied=True),
    "llama untied f16": config("llama", 256, 3, 4, 2, 704, 6000, tied=False, bits=None),
    "gemma tied": config("gemma", 256, 3, 4, 1, 2048, 12000, tied=True, head_dim=64),
}
BASE = {
    "iters": 2,
    "val_batches": 1,
    "steps_per_eval": 100,
    "save_every": 2,
    "num_layers": 3,
    "mask_prompt": False,
}
CASES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("qwen2 tied", {"batch_size": 2, "max_seq_length": 256}),
    ("llama tied", {"batch_size": 1, "max_seq_length": 512, "num_layers": -1}),
    ("llama untied f16", {"batch_size": 2, "max_seq_length": 128, "fine_tune_type": "full"}),
    ("gemma tied", {"batch_size": 4, "max_seq_length": 128}),
    ("qwen2 untied", {"batch_size": 2, "max_seq_length": 256, "fine_tune_type": "dora"}),
    ("llama tied", {"batch_size": 4, "max_seq_length": 128, "grad_checkpoint": True,
                    "num_layers": -1}),
    ("qwen2 untied", {"batch_size": 4, "max_seq_length": 128, "optimizer": "sgd"}),
    ("qwen2 tied", {"batch_size": 4, "max_seq_length": 128, "rank": 64, "num_layers": -1}),
    ("llama untied f16", {"batch_size": 2, "max_seq_length": 256, "optimizer": "muon"}),
    ("gemma tied", {"batch_size": 1, "max_seq_length": 512, "grad_checkpoint": True, "rank": 32}),
    ("qwen2 untied", {"batch_size": 1, "max_seq_length": 512, "grad_accumulation_steps": 2}),
    ("llama tied", {"batch_size": 1, "max_seq_length": 384, "optimizer": "adafactor", "rank": 8}),
    ("gemma tied", {"batch_size": 2, "max_seq_length": 256, "fine_tune_type": "dora",
                    "optimizer": "adam"}),
    ("llama untied f16", {"batch_size": 2, "max_seq_length": 128, "fine_tune_type": "full",
                          "optimizer": "sgd", "num_layers": -1}),
    ("qwen2 tied", {"batch_size": 1, "max_seq_length": 512, "grad_checkpoint": True}),
)  # fmt: skip
"""Ordered so that the first ones already cover every shape."""


@dataclass(frozen=True)
class Row:
    """One case: bytes of the process tree, and of MLX's counter."""

    case: str
    analytic: MemoryEstimate
    probe: MemoryEstimate
    measured: int
    mlx: int

    @property
    def off(self) -> tuple[float, float, float]:
        """Relative error of the analytic estimate, the probe's forecast, the probe's for MLX."""
        return (
            self.analytic.total_bytes / self.measured - 1,
            self.probe.total_bytes / self.measured - 1,
            (self.probe.mlx_peak_bytes or 0) / self.mlx - 1,
        )


class Folders:
    """Models are folders here."""

    def resolve(self, model: str) -> Path:
        return Path(model)


def write_data(folder: Path, length: int, rows: int) -> Path:
    """Plain text whose every example fills `length` tokens, so that each batch is the worst."""
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"text": "0123456789 " * length})
    for split in ("train", "valid"):
        (folder / f"{split}.jsonl").write_text(f"{line}\n" * rows, encoding="utf-8")
    return folder


def measure(work: Path, number: int, name: str, changes: dict[str, Any]) -> Row:
    model = work / name.replace(" ", "-")
    if not (model / "config.json").is_file():
        write_model(model, MODELS[name])
    params = QLoRA.model_validate({**BASE, **changes})
    data = write_data(work / f"data-{number}", params.max_seq_length, max(4, params.batch_size))
    backend = MlxBackend(
        RunStore(work / f"runs-{number}"),
        Folders(),
        reservations=Reservations(work / "ledger"),
        probes=ProbeCache(work / f"probes-{number}"),
    )
    spec = TrainSpec(model=str(model), data_dir=str(data), params=params, memory_limit_bytes=8 * GB)
    asked = Question(spec, model, backend.probes)
    analytic = asked.analytic
    probe = backend.forecast(spec, budget=asked.size.tokens // 2)
    run = backend.train(spec)
    if run.status is not RunStatus.FINISHED or not run.peak_memory_bytes:
        raise RuntimeError(f"case {number} did not finish: {run.failure}")
    shown = ", ".join(f"{key} {value}" for key, value in changes.items())
    return Row(f"{name}: {shown}", analytic, probe, run.peak_memory_bytes, run.mlx_peak_bytes or 1)


def table(rows: list[Row], minutes: float) -> str:
    lines = [
        "## Memory: forecast against measured peak",
        "",
        measured_with("make bench-memory", ("mlx", "mlx-lm")),
        "",
        "Random models, real runs of 2 iterations; the peak is that of the "
        "process tree, which the memory gate compares with the limit. The probe saw batches of at "
        "most half the tokens.",
        "",
        "| case | measured MB | analytic | probe | MLX's counter, MB | probe |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        analytic, probe, mlx = row.off
        lines.append(
            f"| {row.case} | {row.measured / 1e6:.0f} | {analytic:+.1%} | {probe:+.1%} "
            f"| {row.mlx / 1e6:.0f} | {mlx:+.1%} |"
        )
    count = len(rows)
    near = sum(abs(row.off[1]) <= 0.05 for row in rows)
    lowest = min(row.off[1] for row in rows)
    wide = sum(abs(row.off[0]) <= 0.15 for row in rows)
    lines += [
        "",
        f"Probe within 5%: {near} of {count} (goal 95%); lowest {lowest:+.1%} (goal -2%). "
        f"Analytic within 15%: {wide} of {count}. {minutes:.0f} minutes.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    parser.add_argument("--only", type=int, nargs="*", help="case numbers, from 0")
    given = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    started = time.monotonic()
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-memory-") as name:
        for number, (model, changes) in enumerate(CASES):
            if given.only and number not in given.only:
                continue
            row = measure(Path(name), number, model, changes)
            rows.append(row)
            if given.write:  # whoever interrupts it keeps what was measured
                write_section("bench-memory", table(rows, (time.monotonic() - started) / 60))
            off = ", ".join(f"{value:+.1%}" for value in row.off)
            print(f"{number:2d} {row.case}: {row.measured / 1e6:.0f} MB; {off}", flush=True)
    print(table(rows, (time.monotonic() - started) / 60))


if __name__ == "__main__":
    main()
