"""Checkpoints from which a killed run goes on as if nothing had happened.

A checkpoint is two files: the adapter (mlx-lm's own format and name) and the state beside it
(optimizer moments, step, random key; the iteration in its metadata). The state is written last and
both atomically, so a pair is either whole or not there. The order of the data needs no file: it is
a function of seed and iteration.
"""

from __future__ import annotations

import errno
import hashlib
import io
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path

from oodatcaa.domain.base import Record
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.files import write_atomic
from oodatcaa.training.protocol import checkpoint_adapter_name, checkpoint_state_name

STATES_KEPT = 2
"""Optimizer states are twice an adapter's size; only the newest ones can be of use."""
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class RunIdentity(Record):
    """What must be the same for a resumed run to be the same run."""

    params: str
    train_sha256: str


class DiskFullError(Exception):
    """A checkpoint could not be written; the ones before it are untouched."""


def random_key() -> int:
    """MLX's random state as the 64-bit number that `mx.random.seed` would restore it from."""
    state: Any = mx.random.state
    high, low = state[0].tolist()
    return int(high) << 32 | int(low)


def save_tensors(path: Path, tensors: dict[str, mx.array], metadata: dict[str, str]) -> str:
    """Write a safetensors file atomically; its sha256. DiskFullError instead of a torn file.

    MLX's own writer reports a full disk as a bare RuntimeError, so the bytes go through Python.
    """
    buffer = io.BytesIO()
    mx.save_safetensors(buffer, tensors, metadata=metadata)
    data = buffer.getbuffer()  # not getvalue(): full fine-tuning's state would be there twice
    try:
        write_atomic(path, data)
    except OSError as error:
        if error.errno in DISK_FULL:
            raise DiskFullError(f"{path.name}: {error.strerror} ({len(data)} bytes)") from error
        raise
    return hashlib.sha256(data).hexdigest()


class Snapshot:
    """Everything a checkpoint holds, taken at one moment (MLX arrays never change in place)."""

    def __init__(self, iteration: int, adapter: dict[str, mx.array], optimizer: Any) -> None:
        self.iteration = iteration
        self.adapter = dict(adapter)
        self.optimizer = dict(tree_flatten(optimizer.state))
        self.key = random_key()

    def save(self, folder: Path, identity: RunIdentity) -> Path:
        """Write both files; the adapter's path. DiskFullError leaves earlier ones alone."""
        target = folder / checkpoint_adapter_name(self.iteration)
        save_tensors(target, self.adapter, {"format": "mlx"})
        metadata = {
            "iteration": str(self.iteration),
            "random_key": str(self.key),
            "identity": identity.model_dump_json(),
        }
        save_tensors(folder / checkpoint_state_name(self.iteration), self.optimizer, metadata)
        for old in sorted(folder.glob("*_state.safetensors"))[:-STATES_KEPT]:
            old.unlink()
        return target


def restore(adapter_file: Path, network: Any, optimizer: Any, identity: RunIdentity) -> int:
    """Put a checkpoint back; the iteration it was taken after.

    Raises OodatcaaError `train.resume` with everything that does not match, before anything of the
    model is changed.
    """
    stem = adapter_file.name.removesuffix("_adapters.safetensors")
    state_file = adapter_file.with_name(f"{stem}_state.safetensors")
    try:
        tensors: Any = mx.load(str(adapter_file))
        loaded: Any = mx.load(str(state_file), return_metadata=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise _refused([f"{error}"]) from error
    state, metadata = loaded
    was = RunIdentity.model_validate_json(metadata["identity"])
    now = dict(tree_flatten(network.trainable_parameters()))
    problems = []
    if was.params != identity.params:
        problems.append("the QLoRA parameters differ from those of the interrupted run")
    if was.train_sha256 != identity.train_sha256:
        problems.append("train.jsonl differs from that of the interrupted run")
    for name in sorted(now.keys() | tensors.keys()):
        ours, theirs = now.get(name), tensors.get(name)
        if ours is None or theirs is None or ours.shape != theirs.shape:
            problems.append(f"{name}: not the same tensor in checkpoint and model")
    optimizer.init(network.trainable_parameters())
    if dict(tree_flatten(optimizer.state)).keys() != state.keys():
        problems.append("the optimizer's state is not that of this adapter")
    if problems:
        raise _refused(problems)
    network.load_weights(list(tensors.items()), strict=False)
    # In place of the fresh values, so that the tree keeps its empty branches (frozen modules).
    optimizer.state.update(tree_map_with_path(lambda path, _: state[path], optimizer.state))
    mx.eval(network.trainable_parameters(), optimizer.state)
    mx.random.seed(int(metadata["random_key"]))
    return int(metadata["iteration"])


def _refused(problems: list[str]) -> OodatcaaError:
    return OodatcaaError(
        "train.resume",
        f"the checkpoint can not be continued: {problems[0]}",
        hint="start over with `oodatcaa train`; the interrupted run stays as it is",
        details=problems,
    )
