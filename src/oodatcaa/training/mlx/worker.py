"""The training child: `python -m oodatcaa.training.mlx.worker RUN_FOLDER`.

Reads spec.json, trains, writes result.json (WorkerResult). Exit code 0 when the run finished, 3
when result.json describes why it did not.
"""

from __future__ import annotations

import sys
from pathlib import Path

from oodatcaa.domain.training import TrainSpec
from oodatcaa.training.mlx.blas import preload
from oodatcaa.training.protocol import SPEC_FILE, WorkerResult
from oodatcaa.training.serving import read_request, serve_run


def answer(folder: Path) -> WorkerResult:
    spec = read_request(folder, TrainSpec, SPEC_FILE)
    blas = preload()
    # mlx must not be imported before the BLAS is in place.
    from oodatcaa.training.mlx.guard import walled
    from oodatcaa.training.mlx.trainer import Run

    with walled(folder, spec.memory_limit_bytes):
        return Run(folder, spec, blas).train()


if __name__ == "__main__":
    sys.exit(serve_run(answer))
