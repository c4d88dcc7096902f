"""Child process: download a model from the hub with the files mlx-lm would take."""

from __future__ import annotations

import sys
from pathlib import Path

from huggingface_hub import snapshot_download
from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS

from oodatcaa.domain.base import Record
from oodatcaa.training.models import unavailable
from oodatcaa.training.serving import read_request, serve


class FetchRequest(Record):
    name: str


class FetchResult(Record):
    path: str


def fetch(name: str) -> FetchResult:
    """Raises OodatcaaError `model.unavailable` whatever the hub client's reason is."""
    try:
        path = snapshot_download(name, allow_patterns=list(DEFAULT_ALLOW_PATTERNS))
    except Exception as error:
        # The client has a dozen error types for "no": offline, gated, unknown, timeout, proxy.
        raise unavailable(name, error) from error
    return FetchResult(path=str(path))


def _answer(folder: Path) -> Record:
    return fetch(read_request(folder, FetchRequest).name)


if __name__ == "__main__":
    sys.exit(serve(_answer))
