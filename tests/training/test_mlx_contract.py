"""The MLX backend keeps what every backend keeps."""

from __future__ import annotations

from oodatcaa.training.backend import MlxBackend
from oodatcaa.training.protocol import ADAPTER_FILE
from training_contract import BackendContract


class TestMlx(BackendContract):
    backend_kind = MlxBackend
    adapter_file = ADAPTER_FILE
