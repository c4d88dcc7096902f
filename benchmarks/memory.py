"""`make bench-memory`: forecast against measured peak, over a grid of random models.

Each case is a real training run (the worker in its child, under the watch) of a model made on the
spot. It is forecast twice: from a probe of its very batch, which is what a crew asks for where the
batch is small enough, and from probes of at most half its tokens. Behind the grid come cases drawn
at random, to which nothing can have been tuned.
The table goes into docs/benchmarks.md with `--write`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from drawn_models import Case, drawn
from page import measured_with, write_section
from random_model import config, write_model

from oodatcaa.domain.memory import MemoryEstimate
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import GB, RunStatus, TrainSpec
from oodatcaa.training.backend import MlxBackend
from oodatcaa.training.forecast import ProbeCache, Probed, forecast
from oodatcaa.training.question import Question
from oodatcaa.training.reservation import Reservations
from oodatcaa.training.runs import RunStore

MODELS: dict[str, dict[str, Any]] = {
    "qwen2 tied": config("qwen2", 256, 4, 8, 2, 768, 16000, tied=True),
    "qwen2 untied": config("qwen2", 384, 3, 6, 2, 1024, 8000, tied=False),
    "llama tied": config("llama", 320, 6, 5, 5, 896, 4000, tied=True),
    "llama untied f16": config("llama", 256, 3, 4, 2, 704, 6000, tied=False, bits=None),
    "llama wide": config("llama", 512, 8, 8, 4, 1408, 32000, tied=True),
    "gemma tied": config("gemma", 256, 3, 4, 1, 2048, 12000, tied=True, head_dim=64),
    "llama deep": config("llama", 192, 12, 6, 3, 512, 9000, tied=False),
    "llama 8 bit": config("llama", 384, 5, 12, 4, 1536, 24000, tied=True, bits=8),
    "gemma wide heads": config("gemma", 320, 4, 5, 5, 1280, 6000, tied=True, head_dim=128),
    "llama gqa f16": config("llama", 320, 4, 5, 1, 1024, 10000, tied=True, bits=None),
    "qwen2 gqa f16": config("qwen2", 320, 5, 10, 2, 864, 14000, tied=False, bits=None),
    "qwen2 wide": config("qwen2", 576, 6, 9, 3, 1536, 26000, tied=True),
    "gemma deep": config("gemma", 192, 9, 3, 1, 1536, 20000, tied=True, head_dim=64),
    "llama 2 bit": config("llama", 448, 6, 7, 7, 1216, 10000, tied=False, bits=2),
    # Its logits are scaled behind the output layer: the loss can not be computed in tiles.
    "granite": {
        **config("llama", 256, 4, 4, 2, 768, 12000, tied=True),
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        "logits_scaling": 8.0,
        "attention_multiplier": 0.015625,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "qwen2 8 bit": config("qwen2", 320, 5, 5, 5, 1152, 18000, tied=False, bits=8),
    "llama tall": config("llama", 256, 16, 8, 2, 640, 15000, tied=False),
    "qwen2 narrow": config("qwen2", 192, 10, 3, 1, 1024, 30000, tied=True),
    "llama mid": config("llama", 448, 5, 7, 7, 1280, 7000, tied=False),
}
ITERS = 40
"""A process's peak was seen to rise for many steps where rows are on several threads."""
BASE = {
    "iters": ITERS,
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
    ("llama untied f16", {"batch_size": 3, "max_seq_length": 192, "rank": 4}),
    ("qwen2 tied", {"batch_size": 8, "max_seq_length": 96, "optimizer": "adam"}),
    ("gemma tied", {"batch_size": 2, "max_seq_length": 320, "grad_checkpoint": True,
                    "num_layers": -1}),
    ("llama tied", {"batch_size": 6, "max_seq_length": 128, "optimizer": "muon", "num_layers": 2}),
    ("qwen2 untied", {"batch_size": 1, "max_seq_length": 768}),
    ("llama tied", {"batch_size": 2, "max_seq_length": 512, "fine_tune_type": "dora"}),
    ("llama wide", {"batch_size": 4, "max_seq_length": 256}),
    ("llama wide", {"batch_size": 2, "max_seq_length": 512, "grad_checkpoint": True,
                    "num_layers": -1}),
    ("llama wide", {"batch_size": 8, "max_seq_length": 128, "optimizer": "adafactor", "rank": 32}),
    ("qwen2 untied", {"batch_size": 2, "max_seq_length": 448, "grad_checkpoint": True,
                      "num_layers": -1}),
    ("llama tied", {"batch_size": 3, "max_seq_length": 256, "grad_checkpoint": True,
                    "grad_checkpoint_layers": 3, "num_layers": -1}),
    ("gemma tied", {"batch_size": 2, "max_seq_length": 384, "rank": 8}),
    ("llama wide", {"batch_size": 1, "max_seq_length": 640, "num_layers": 4}),
    ("qwen2 tied", {"batch_size": 6, "max_seq_length": 160, "optimizer": "adafactor",
                    "num_layers": -1}),
    ("llama untied f16", {"batch_size": 4, "max_seq_length": 160, "grad_checkpoint": True,
                          "optimizer": "adam"}),
    ("llama gqa f16", {"batch_size": 2, "max_seq_length": 448, "grad_checkpoint": True,
                       "num_layers": -1}),
    ("llama deep", {"batch_size": 4, "max_seq_length": 224, "num_layers": -1}),
    ("llama 8 bit", {"batch_size": 1, "max_seq_length": 704, "num_layers": 4}),
    ("gemma wide heads", {"batch_size": 5, "max_seq_length": 192, "num_layers": -1}),
    ("gemma wide heads", {"batch_size": 1, "max_seq_length": 640, "fine_tune_type": "dora"}),
    ("llama 8 bit", {"batch_size": 2, "max_seq_length": 320, "grad_checkpoint": True,
                     "num_layers": -1}),
    ("llama deep", {"batch_size": 3, "max_seq_length": 352, "rank": 4, "cache_frozen": True}),
    ("qwen2 gqa f16", {"batch_size": 3, "max_seq_length": 224, "dropout": 0.1}),
    ("qwen2 gqa f16", {"batch_size": 2, "max_seq_length": 192, "fine_tune_type": "full",
                       "num_layers": -1, "grad_checkpoint": True}),
    ("qwen2 gqa f16", {"batch_size": 1, "max_seq_length": 448, "fine_tune_type": "full",
                       "optimizer": "adam"}),
    ("qwen2 wide", {"batch_size": 2, "max_seq_length": 384, "num_layers": -1,
                    "grad_checkpoint": True}),
    ("qwen2 wide", {"batch_size": 3, "max_seq_length": 256, "dense_weights": True}),
    ("gemma deep", {"batch_size": 4, "max_seq_length": 160, "num_layers": -1}),
    ("gemma deep", {"batch_size": 1, "max_seq_length": 896, "num_layers": 6}),
    ("llama 2 bit", {"batch_size": 2, "max_seq_length": 288, "fine_tune_type": "dora",
                     "dropout": 0.05}),
    ("llama 2 bit", {"batch_size": 6, "max_seq_length": 96, "grad_accumulation_steps": 3,
                     "optimizer": "adafactor", "num_layers": 5}),
    ("llama 2 bit", {"batch_size": 2, "max_seq_length": 544, "dropout": 0.2,
                     "grad_checkpoint": True, "num_layers": -1}),
    ("granite", {"batch_size": 2, "max_seq_length": 256}),
    ("granite", {"batch_size": 1, "max_seq_length": 640, "grad_checkpoint": True,
                 "num_layers": -1}),
    ("qwen2 8 bit", {"batch_size": 4, "max_seq_length": 192, "dropout": 0.1, "num_layers": -1}),
    ("qwen2 8 bit", {"batch_size": 1, "max_seq_length": 576, "fine_tune_type": "dora"}),
    ("llama tall", {"batch_size": 3, "max_seq_length": 288, "grad_checkpoint": True,
                    "grad_checkpoint_layers": 8, "num_layers": -1}),
    ("llama tall", {"batch_size": 5, "max_seq_length": 128, "rank": 32, "optimizer": "adam"}),
    ("qwen2 narrow", {"batch_size": 4, "max_seq_length": 224}),
    ("qwen2 narrow", {"batch_size": 1, "max_seq_length": 640, "num_layers": -1}),
    ("llama mid", {"batch_size": 2, "max_seq_length": 320, "grad_checkpoint": True,
                   "num_layers": -1}),
    ("llama mid", {"batch_size": 6, "max_seq_length": 112, "num_layers": 4}),
    ("llama mid", {"batch_size": 1, "max_seq_length": 512, "fine_tune_type": "dora"}),
)  # fmt: skip
DRAWN, SEED = 20, 20261130


@dataclass(frozen=True)
class Row:
    """One case: bytes of the process tree."""

    case: str
    analytic: MemoryEstimate
    same: MemoryEstimate
    """Forecast from a probe of the very batch."""
    half: MemoryEstimate
    """Forecast from probes of at most half its tokens."""
    measured: int
    again: bool = False
    """Measured before, and forecast anew."""

    @property
    def off(self) -> tuple[float, float, float]:
        """Relative errors of the three."""
        found = (self.analytic, self.same, self.half)
        analytic, same, half = (one.total_bytes / self.measured - 1 for one in found)
        return analytic, same, half


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


@dataclass(frozen=True)
class Training:
    """One case with its files in the folder of all."""

    name: str
    model: Path
    spec: TrainSpec
    runs: Path
    probes: dict[int, Path]
    """By what part of the batch's tokens they may have: the whole, a half."""

    @property
    def asked(self) -> Question:
        return Question(self.spec, self.model, ProbeCache(self.probes[1]))

    @property
    def peak_bytes(self) -> int | None:
        """Of the run that is kept; None without one that finished."""
        kept = RunStore(self.runs).list().runs
        peaks = [one.peak_memory_bytes for one in kept if one.status is RunStatus.FINISHED]
        return peaks[-1] if peaks else None


def prepare(work: Path, number: int, case: Case) -> Training:
    name, shape, changes = case
    model = work / re.sub(r"[ ,]+", "-", name)
    if not (model / "config.json").is_file():
        write_model(model, shape)
    params = QLoRA.model_validate({**BASE, **changes})
    data = write_data(work / f"data-{number}", params.max_seq_length, max(4, params.batch_size))
    shown = ", ".join(f"{key} {value}" for key, value in changes.items())
    return Training(
        name=f"{name}: {shown}",
        model=model,
        spec=TrainSpec(
            model=str(model), data_dir=str(data), params=params, memory_limit_bytes=8 * GB
        ),
        runs=work / f"runs-{number}",
        probes={share: work / f"probes-{number}-{share}" for share in (1, 2)},
    )


def measure(work: Path, case: Training) -> Row:
    """Probes and the run itself, in children under the gate."""
    asked, forecasts = case.asked, []
    for share, probes in case.probes.items():
        backend = MlxBackend(
            RunStore(case.runs),
            Folders(),
            reservations=Reservations(work / "ledger"),
            probes=ProbeCache(probes),
        )
        forecasts.append(backend.forecast(case.spec, budget=asked.size.tokens // share))
    run = backend.train(case.spec)
    if run.status is not RunStatus.FINISHED or not run.peak_memory_bytes:
        raise RuntimeError(f"{case.name}: did not finish: {run.failure}")
    same, half = forecasts
    return Row(case.name, asked.analytic, same, half, run.peak_memory_bytes)


def reckon(case: Training, peak: int) -> Row:
    """What was measured and kept before, with the forecasts as the terms make them now."""
    asked, forecasts = case.asked, []
    for probes in case.probes.values():
        (file,) = probes.glob("*.json")  # under the family of the terms of then
        probed = Probed.model_validate_json(file.read_bytes())
        forecasts.append(forecast(probed, asked.shape, case.spec.params, asked.size, asked.device))
    same, half = forecasts
    return Row(case.name, asked.analytic, same, half, peak, again=True)


def table(rows: dict[int, Row], minutes: float, seed: int) -> str:
    """`rows` by the number of their case."""
    lines = [
        "## Memory: forecast against measured peak",
        "",
        measured_with("make bench-memory", ("mlx", "mlx-lm")),
        "",
        f"Random models, real runs of {ITERS} iterations; the peak is that of the process tree, "
        "which the memory gate compares with the limit. The first forecast is from a probe of the "
        "very batch, as a crew asks for where it is small enough; the second from probes of at "
        "most half its tokens.",
        "",
        "| case | measured MB | analytic | probe of the batch | probes of half |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows.values():
        analytic, same, half = row.off
        lines.append(
            f"| {row.case} | {row.measured / 1e6:.0f} | {analytic:+.1%} | {same:+.1%} "
            f"| {half:+.1%} |"
        )
    parts = {
        "The grid, looked at while the forecast was made": range(len(CASES)),
        f"Drawn at random (seed {seed})": range(len(CASES), sys.maxsize),
    }
    for what, numbers in parts.items():
        part = [row for number, row in rows.items() if number in numbers]
        if part:
            said = []
            for title, place in (("the batch", 1), ("half", 2)):
                off = [row.off[place] for row in part]
                near = sum(abs(one) <= 0.05 for one in off)
                said.append(
                    f"probe of {title} within 5%: {near} of {len(off)}, lowest {min(off):+.1%}"
                )
            wide = sum(abs(row.off[0]) <= 0.15 for row in part)
            said.append(f"analytic within 15%: {wide} of {len(part)}")
            lines += ["", f"{what}: {'; '.join(said)}."]
    if before := sum(row.again for row in rows.values()):
        lines += [
            "",
            f"Probes and runs of {before} cases were made before the terms were last changed; "
            "their forecasts were made anew from the same probes.",
        ]
    lines += [
        "",
        "Goals, on configurations that nobody tuned to: 95% within 5% and none more than 2% under; "
        f"analytic within 15%. {minutes:.0f} minutes.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    parser.add_argument("--only", type=int, nargs="*", help="case numbers, from 0")
    parser.add_argument("--keep", type=Path, help="a folder for models, probes and runs")
    parser.add_argument(
        "--again",
        action="store_true",
        help="forecast anew what --keep holds, after a change to the terms alone",
    )
    parser.add_argument("--drawn", type=int, default=DRAWN, help="cases drawn at random")
    parser.add_argument("--seed", type=int, default=SEED, help="of the drawn ones: one never used")
    given = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    started = time.monotonic()
    cases = [(name, MODELS[name], changes) for name, changes in CASES]
    cases += drawn(given.seed, given.drawn)
    rows: dict[int, Row] = {}

    def written() -> str:
        return table(rows, (time.monotonic() - started) / 60, given.seed)

    with contextlib.ExitStack() as stack:
        work = given.keep or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-memory-"))
        )
        for number, case in enumerate(cases):
            if given.only and number not in given.only:
                continue
            training = prepare(work, number, case)
            peak = training.peak_bytes if given.again else None
            rows[number] = row = reckon(training, peak) if peak else measure(work, training)
            if given.write:  # whoever interrupts it keeps what was measured
                write_section("bench-memory", written())
            off = ", ".join(f"{value:+.1%}" for value in row.off)
            print(f"{number:2d} {row.case}: {row.measured / 1e6:.0f} MB; {off}", flush=True)
    print(written())


if __name__ == "__main__":
    main()
