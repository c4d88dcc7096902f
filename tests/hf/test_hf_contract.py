"""The Hugging Face backend keeps what every backend keeps."""

from __future__ import annotations

import pytest

from oodatcaa.domain.training import RunRecord, TrainSpec
from oodatcaa.training.backend import ChildBackend, HfBackend
from oodatcaa.training.protocol import PEFT_ADAPTER_FILE
from training_contract import BackendContract

pytest.importorskip("torch")
pytest.importorskip("peft")


class TestHf(BackendContract):
    backend_kind = HfBackend
    adapter_file = PEFT_ADAPTER_FILE

    @pytest.mark.slow
    def test_packed_it_learns_and_after_kill_9_goes_on_to_the_same_bits(
        self, backend: ChildBackend, spec: TrainSpec, run: RunRecord
    ) -> None:
        super().test_packed_it_learns_and_after_kill_9_goes_on_to_the_same_bits(backend, spec, run)
