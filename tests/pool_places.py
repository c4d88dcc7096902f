"""`pool.Places` for tests: a model id is a folder."""

from __future__ import annotations

from pathlib import Path

from oodatcaa.pool.records import PlacedBase
from oodatcaa.pool.tensors import sha256_of


class Folders:
    """The name is the folder's, the fingerprint is of the weights."""

    def place(self, model_id: str) -> PlacedBase:
        sha = sha256_of(Path(model_id) / "model.safetensors")
        return PlacedBase(name=Path(model_id).name, path=model_id, sha256=sha)
