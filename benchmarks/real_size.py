"""`make bench-real-size`: the real path on a random model of Qwen2.5-Coder-7B's exact shape.

The model (4-bit, group 64, about 4.3 GB) is written shard by shard into a temporary folder that
is removed afterwards. Then what a user does: the analytic estimate, a probe at small sizes, and a
training run at rank 16, alpha 32, batch 1. `--small` does the same with a small shape.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from memory import Folders, write_data
from page import measured_with, write_section
from random_model import config, write_model

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import GB, RunRecord, TrainSpec
from oodatcaa.training.backend import MlxBackend
from oodatcaa.training.forecast import ProbeCache
from oodatcaa.training.question import Question
from oodatcaa.training.reservation import Reservations
from oodatcaa.training.runs import RunStore

QWEN_7B = config("qwen2", 3584, 28, 28, 4, 18944, 152064, tied=False)
SMALL = config("qwen2", 256, 4, 4, 2, 768, 4000, tied=False)
NEEDED_DISK = 6 * GB


def spec_for(model: Path, data: Path, given: argparse.Namespace) -> TrainSpec:
    params = QLoRA(
        rank=16,
        alpha=32,
        num_layers=given.layers,
        batch_size=1,
        max_seq_length=given.length,
        iters=given.steps,
        grad_checkpoint=True,
        mask_prompt=False,
        val_batches=1,
        steps_per_eval=1000,
    )
    limit = round(given.limit * GB)
    return TrainSpec(model=str(model), data_dir=str(data), params=params, memory_limit_bytes=limit)


def measure(work: Path, given: argparse.Namespace) -> dict[str, Any]:
    started = time.monotonic()
    model = write_model(work / "model", SMALL if given.small else QWEN_7B)
    wrote = time.monotonic() - started
    writer = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    size = sum(path.stat().st_size for path in model.iterdir())
    print(f"model of {size / GB:.2f} GB written in {wrote:.0f} s, {writer / GB:.2f} GB", flush=True)
    spec = spec_for(model, write_data(work / "data", given.length, 2), given)
    backend = MlxBackend(
        RunStore(work / "runs"),
        Folders(),
        reservations=Reservations(work / "ledger"),
        probes=ProbeCache(work / "probes"),
    )
    asked = Question(spec, model, backend.probes)
    print(f"analytic estimate {asked.analytic.total_bytes / GB:.2f} GB", flush=True)
    started = time.monotonic()
    probe = backend.forecast(spec, budget=given.probe)
    probed = time.monotonic() - started
    print(f"probe forecast {probe.total_bytes / GB:.2f} GB in {probed:.0f} s", flush=True)
    started = time.monotonic()
    run: RunRecord = backend.train(spec)
    trained = time.monotonic() - started
    print(f"run {run.status.value}: {(run.peak_memory_bytes or 0) / GB:.2f} GB, {trained:.0f} s")
    if run.failure is not None:
        raise SystemExit(f"the run did not finish: {run.failure.message}")
    return {
        "model": size, "writer": writer, "wrote": wrote, "probed": probed, "trained": trained,
        "analytic": asked.analytic, "probe": probe, "run": run,
    }  # fmt: skip


def section(found: dict[str, Any], given: argparse.Namespace) -> str:
    run, measured = found["run"], found["run"].peak_memory_bytes
    name = "a small shape" if given.small else "Qwen2.5-Coder-7B's shape"
    layers = "all" if given.layers < 0 else f"the last {given.layers}"
    rows = [
        ("analytic estimate", found["analytic"].total_bytes),
        (f"forecast of a probe at up to {given.probe} tokens", found["probe"].total_bytes),
        ("measured, process tree (what the gate compares)", measured),
        ("measured, MLX's own counter", run.mlx_peak_bytes),
        ("written with (peak of the process that made the model)", found["writer"]),
    ]
    lines = [
        "## Real size: a training step of a 7B model",
        "",
        measured_with("make bench-real-size", ("mlx", "mlx-lm")),
        "",
        f"Random weights in {name}, 4-bit, {found['model'] / GB:.2f} GB on disk; rank 16, alpha "
        f"32, {layers} blocks, checkpointed, batch 1 x {given.length} tokens with loss on every "
        f"one, limit {given.limit:g} GB. {run.iterations_done} whole step(s) with validation and "
        f"checkpoint: {found['trained']:.0f} s, the probe {found['probed']:.0f} s.",
        "",
        "| | GB | against measured |",
        "| --- | ---: | ---: |",
    ]
    for what, size in rows:
        off = f"{size / measured - 1:+.1%}" if "forecast" in what or "estimate" in what else ""
        lines.append(f"| {what} | {size / GB:.2f} | {off} |")
    lines += [
        "",
        "Not run: Metal and CUDA, longer sequences, real weights (the values do not change what "
        "memory is needed), a whole epoch.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    parser.add_argument("--small", action="store_true", help="a small shape, to try the script")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--layers", type=int, default=-1)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--probe", type=int, default=64, help="tokens of the largest probe")
    parser.add_argument("--limit", type=float, default=16.0, help="GB")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-real-size-", dir=given.folder) as name:
        free = shutil.disk_usage(name).free
        if not given.small and free < NEEDED_DISK:
            raise SystemExit(f"{name} has {free / GB:.1f} GB free, {NEEDED_DISK / GB:.0f} needed")
        text = section(measure(Path(name), given), given)
    print(text)
    if given.write:
        write_section("bench-real-size", text)


if __name__ == "__main__":
    main()
