"""Training data looked at by hand, inside a project or outside of one."""

from __future__ import annotations

from pathlib import Path

from oodatcaa.training.data_report import DataReport, examine
from oodatcaa.training.models import ModelStore


def check_data(
    folder: Path, *, model: str | None, max_seq_length: int, mask_prompt: bool
) -> DataReport:
    """Raises OodatcaaError for a model that is not here; what is wrong with data is a finding."""
    path = Path(ModelStore().resolve(model).path_or_hub) if model else None
    return examine(
        folder,
        model_path=path,
        max_seq_length=max_seq_length,
        mask_prompt=mask_prompt,
        scanned=None,
    )
