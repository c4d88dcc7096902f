"""What makes two training processes the same one, as named facts: no framework here.

A resumed run ends with the very same bits only when all of them are the same. The parent knows
most of them beforehand and looks for a checkpoint that fits; the worker knows all, and refuses.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.training.hashes import file_sha256

CADENCE = frozenset(
    {"steps_per_report", "steps_per_eval", "val_batches", "save_every", "keep_checkpoints"}
    | {"clear_cache_threshold", "dense_weights"}
)
"""Parameters that may change on a resume: they do not touch the weights."""
SELECTS = frozenset({"steps_per_eval", "val_batches"})
"""But these decide which weights are kept, where validation selects them."""
PACKAGES = (
    *("oodatcaa", "mlx", "mlx-lm", "mkl", "numpy", "tokenizers", "transformers"),
    *("torch", "peft", "axolotl"),
)
"""Their versions shape the numbers."""
COUNTS = ("MKL_NUM_THREADS", "OMP_NUM_THREADS")
NUMPY_THREADS, NUMPY_KERNELS = "OPENBLAS_NUM_THREADS", "OPENBLAS_CORETYPE"
THREADS = (*COUNTS, "MKL_CBWR", NUMPY_THREADS, NUMPY_KERNELS)
"""Sums are in another order with another number of threads, or on another code path."""


def installed_versions() -> dict[str, str]:
    """Those of PACKAGES that are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def cores() -> int:
    """The threads that a training child of this process computes with."""
    told = os.environ.get("MKL_NUM_THREADS", "")
    if told.isdecimal() and int(told):
        return int(told)
    return usable_cores()


def usable_cores() -> int:
    """Those that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def too_many_threads(environment: Mapping[str, str]) -> str | None:
    """A sentence where training would compute with more threads than there are cores: they wait for
    each other at every product. The number itself stays as it was told: sums depend on it."""
    usable = usable_cores()
    told = {name: environment.get(name, "") for name in COUNTS}
    over = [f"{name}={n}" for name, n in told.items() if n.isdecimal() and int(n) > usable]
    if not over:
        return None
    cores = "1 core" if usable == 1 else f"{usable} cores"
    return (
        f"{' and '.join(over)}, but this process may use {cores}: training will be many times "
        f"slower. Unset it, or set it to {usable}. A run that began with it can only be resumed "
        "with it: its sums are in that order"
    )


def pinned(environment: Mapping[str, str]) -> dict[str, str]:
    """What of THREADS a child needs that shall compute the same bits every time; what is set
    already stays.

    MKL promises the same result from run to run, whatever the alignment of its operands, only in
    its STRICT mode and with a fixed number of threads (oneMKL developer guide, "Obtaining
    Numerically Reproducible Results").
    """
    usable = cores()
    wanted = {
        "MKL_NUM_THREADS": str(usable),
        "OMP_NUM_THREADS": str(usable),
        "MKL_DYNAMIC": "FALSE",
        "MKL_CBWR": "AUTO,STRICT",
    }
    return {name: environment.get(name, value) for name, value in wanted.items()}


def parameter_facts(params: QLoRA) -> dict[str, str]:
    """Every parameter that decides the result."""
    free = CADENCE - SELECTS if params.selects else CADENCE
    return {
        f"params.{name}": json.dumps(value)
        for name, value in params.model_dump(mode="json", exclude=set(free)).items()
    }


def data_facts(folder: Path) -> dict[str, str]:
    """Hashes of what is trained on and selected by."""
    return {
        name: file_sha256(folder / name) if (folder / name).is_file() else ""
        for name in ("train.jsonl", "valid.jsonl")
    }


def machine_facts(processor: str, blas: str) -> dict[str, str]:
    """Software and hardware; `blas` as in run.json."""
    versions = installed_versions()
    return {
        **{f"version of {name}": versions.get(name, "") for name in PACKAGES},
        "processor": processor,
        "BLAS": blas,
    }


def thread_facts(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: environment.get(name, "") for name in THREADS}
