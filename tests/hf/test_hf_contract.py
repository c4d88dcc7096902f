"""The Hugging Face backend keeps what every backend keeps."""

from __future__ import annotations

import pytest

from oodatcaa.training.backend import HfBackend
from oodatcaa.training.protocol import PEFT_ADAPTER_FILE
from training_contract import BackendContract

pytest.importorskip("torch")
pytest.importorskip("peft")


class TestHf(BackendContract):
    backend_kind = HfBackend
    adapter_file = PEFT_ADAPTER_FILE
