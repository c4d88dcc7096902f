"""PyTorch's own view of its memory, and the device it computes on."""

from __future__ import annotations

from pathlib import Path

import torch

from oodatcaa.domain.training import Machine
from oodatcaa.kit.memory import own_memory, own_peak, reset_own_peak
from oodatcaa.training.frameworks import TORCH_BLAS
from oodatcaa.training.mlx.blas import describe_machine


def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def accelerator() -> str:
    """`metal`, `cuda` or `cpu`."""
    kind = device().type
    return "metal" if kind == "mps" else kind


def machine() -> Machine:
    """For run.json."""
    return describe_machine(None).evolve(accelerator=accelerator(), blas=TORCH_BLAS)


class TorchCounters:
    """training.wall.Counters. On the CPU PyTorch counts nothing: the process's memory stands in."""

    title = "PyTorch"

    def __init__(self) -> None:
        self._high = 0

    def held(self) -> int:
        kind = device().type
        if kind == "cuda":
            return int(torch.cuda.memory_reserved())
        if kind == "mps":
            return int(torch.mps.driver_allocated_memory())
        return own_memory()

    def active(self) -> int:
        kind = device().type
        if kind == "cuda":
            return int(torch.cuda.memory_allocated())
        if kind == "mps":
            return int(torch.mps.current_allocated_memory())
        return own_memory()

    def peak(self) -> int:
        if device().type == "cuda":
            return int(torch.cuda.max_memory_reserved())
        known = own_peak() if device().type == "cpu" and Path("/proc/self").exists() else None
        # Metal keeps no mark of its own: what was seen when somebody asked.
        self._high = max(self._high, self.held(), known or 0)
        return self._high

    def reset(self) -> None:
        self._high = 0
        if device().type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            reset_own_peak()


COUNTERS = TorchCounters()
