"""The tensors of a checkpoint: taken at one moment, written, and put back bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path

from oodatcaa.training import checkpoints
from oodatcaa.training.checkpoints import (
    STATE_FILE,
    CheckpointNote,
    RunIdentity,
    refused,
    save_stream,
    verify,
)
from oodatcaa.training.mlx.randomness import random_key
from oodatcaa.training.mlx.setup import adapter_tensors
from oodatcaa.training.protocol import ADAPTER_FILE


def save_tensors(path: Path, tensors: dict[str, mx.array], metadata: dict[str, str]) -> str:
    """Write a safetensors file atomically; its sha256. DiskFullError instead of a torn file.

    MLX's own writer reports a full disk as a bare RuntimeError, so the bytes go through Python, a
    tensor at a time: full fine-tuning's state is gigabytes, which must not be there twice.
    """
    return save_stream(path, lambda file: mx.save_safetensors(file, tensors, metadata=metadata))


def not_finite(tensors: dict[str, mx.array]) -> tuple[str, ...]:
    """Names of those with a value that is not a finite number."""
    return tuple(name for name, tensor in tensors.items() if not mx.isfinite(tensor).all().item())


class Snapshot(checkpoints.Snapshot):
    """MLX arrays never change in place: nothing is copied."""

    def __init__(
        self, note: CheckpointNote, adapter: dict[str, mx.array], optimizer: Any, metrics_bytes: int
    ) -> None:
        super().__init__(note.evolve(random_key=random_key()), metrics_bytes)
        self.adapter = dict(adapter)
        self.optimizer = dict(tree_flatten(optimizer.state))

    def not_finite(self) -> tuple[str, ...]:
        """See training.monitor.Boundary."""
        return not_finite(self.adapter)

    def writers(self) -> Mapping[str, Callable[[Path], str]]:
        return {
            ADAPTER_FILE: lambda path: save_tensors(path, self.adapter, {"format": "mlx"}),
            STATE_FILE: lambda path: save_tensors(path, self.optimizer, {}),
        }


class State:
    """training.monitor.State of an MLX run."""

    def __init__(self, network: Any, optimizer: Any) -> None:
        self.network, self.optimizer = network, optimizer

    @property
    def optimizer_step(self) -> int:
        return int(self.optimizer.step.item())

    def snapshot(self, note: CheckpointNote, metrics_bytes: int) -> Snapshot:
        return Snapshot(note, adapter_tensors(self.network), self.optimizer, metrics_bytes)


def restore(
    folder: Path, network: Any, optimizer: Any, identity: RunIdentity, start: int = 0
) -> CheckpointNote:
    """Put a checkpoint back, in the thread that will train; its note.

    Raises OodatcaaError `train.resume` with everything that does not match, before anything of the
    model is changed, and `train.checkpoint_torn`. A `start` other than 0 must be its iteration.
    """
    note = verify(folder)
    tensors: Any = mx.load(str(folder / ADAPTER_FILE))
    state: Any = mx.load(str(folder / STATE_FILE))
    now = dict(tree_flatten(network.trainable_parameters()))
    problems = list(note.identity.differences(identity.facts))
    if start not in (0, note.iteration):
        problems.append(f"it is of iteration {note.iteration}, not {start}")
    for name in sorted(now.keys() | tensors.keys()):
        ours, theirs = now.get(name), tensors.get(name)
        if ours is None or theirs is None or _kind(ours) != _kind(theirs):
            problems.append(f"{name}: not the same tensor in checkpoint and model")
    optimizer.init(network.trainable_parameters())
    if dict(tree_flatten(optimizer.state)).keys() != state.keys():
        problems.append("the optimizer's state is not that of this adapter")
    if problems:
        raise refused(problems)
    network.load_weights(list(tensors.items()), strict=False)
    # In place of the fresh values, so that the tree keeps its empty branches (frozen modules).
    optimizer.state.update(tree_map_with_path(lambda path, _: state[path], optimizer.state))
    mx.eval(network.trainable_parameters(), optimizer.state)
    mx.random.seed(note.random_key)
    return note


def _kind(tensor: mx.array) -> tuple[Any, ...]:
    return (tensor.shape, tensor.dtype)
