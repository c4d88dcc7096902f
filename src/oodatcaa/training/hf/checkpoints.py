"""The tensors of a checkpoint of a PyTorch run: PEFT's adapter file and the optimizer's state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save

from oodatcaa.training import checkpoints
from oodatcaa.training.checkpoints import (
    STATE_FILE,
    CheckpointNote,
    RunIdentity,
    refused,
    save_bytes,
    verify,
)
from oodatcaa.training.hf.counters import device
from oodatcaa.training.protocol import PEFT_ADAPTER_FILE

RANDOM = "random"
"""PyTorch's random state is thousands of bytes: a tensor beside the optimizer's."""


def adapter_tensors(network: Any) -> dict[str, torch.Tensor]:
    """Under the names of PEFT's file, copied: PyTorch changes weights in place."""
    found = get_peft_model_state_dict(network)
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in found.items()}


def save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    """A safetensors file, atomically; its sha256. DiskFullError instead of a torn file."""
    return save_bytes(path, save(tensors, metadata={"format": "pt"}))


def not_finite(tensors: dict[str, torch.Tensor]) -> tuple[str, ...]:
    """Names of those with a value that is not a finite number."""
    return tuple(
        name for name, tensor in tensors.items() if not torch.isfinite(tensor).all().item()
    )


class Snapshot(checkpoints.Snapshot):
    """PyTorch changes weights in place: everything is copied."""

    def __init__(
        self, note: CheckpointNote, network: Any, optimizer: Any, metrics_bytes: int
    ) -> None:
        super().__init__(note, metrics_bytes)
        self.adapter = adapter_tensors(network)
        self.optimizer = {**_state(optimizer), RANDOM: torch.get_rng_state()}

    def not_finite(self) -> tuple[str, ...]:
        """See training.monitor.Boundary."""
        return not_finite(self.adapter)

    def writers(self) -> Mapping[str, Callable[[Path], str]]:
        return {
            PEFT_ADAPTER_FILE: lambda path: save_tensors(path, self.adapter),
            STATE_FILE: lambda path: save_tensors(path, self.optimizer),
        }


class State:
    """training.monitor.State; `optimizer_step` is counted by the loop."""

    def __init__(self, network: Any, optimizer: Any, optimizer_step: int = 0) -> None:
        self.network, self.optimizer, self.optimizer_step = network, optimizer, optimizer_step

    def snapshot(self, note: CheckpointNote, metrics_bytes: int) -> Snapshot:
        return Snapshot(note, self.network, self.optimizer, metrics_bytes)


def _state(optimizer: Any) -> dict[str, torch.Tensor]:
    return {
        f"{index}.{name}": torch.as_tensor(value).detach().cpu().clone().contiguous()
        for index, parts in optimizer.state_dict()["state"].items()
        for name, value in parts.items()
        if value is not None
    }


def restore(
    folder: Path, network: Any, optimizer: Any, identity: RunIdentity, start: int = 0
) -> CheckpointNote:
    """Put a checkpoint back; its note.

    Raises OodatcaaError `train.resume` with everything that does not match, before anything of the
    model is changed, and `train.checkpoint_torn`. A `start` other than 0 must be its iteration.
    """
    note = verify(folder)
    tensors = load_file(str(folder / PEFT_ADAPTER_FILE))
    stored = load_file(str(folder / STATE_FILE))
    now = adapter_tensors(network)
    problems = list(note.identity.differences(identity.facts))
    if start not in (0, note.iteration):
        problems.append(f"it is of iteration {note.iteration}, not {start}")
    for name in sorted(now.keys() | tensors.keys()):
        ours, theirs = now.get(name), tensors.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            problems.append(f"{name}: not the same tensor in checkpoint and model")
    if problems:
        raise refused(problems)
    set_peft_model_state_dict(network, tensors)
    torch.set_rng_state(stored.pop(RANDOM))
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in stored.items():
        index, _, part = name.partition(".")
        state.setdefault(int(index), {})[part] = tensor.to(device()) if part != "step" else tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    return note
