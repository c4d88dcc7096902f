"""The training child: `python -m oodatcaa.training.hf.worker RUN_FOLDER`.

Reads spec.json, trains, writes result.json (WorkerResult). Exit code 0 when the run finished, 3
when result.json describes why it did not.
"""

from __future__ import annotations

import sys
from pathlib import Path

from oodatcaa.domain.training import TrainSpec
from oodatcaa.training.protocol import SPEC_FILE, WorkerResult
from oodatcaa.training.serving import read_request, serve_run


def answer(folder: Path) -> WorkerResult:
    spec = read_request(folder, TrainSpec, SPEC_FILE)
    from oodatcaa.training.hf.counters import COUNTERS
    from oodatcaa.training.hf.trainer import Run
    from oodatcaa.training.wall import walled

    with walled(folder, spec.memory_limit_bytes, COUNTERS):
        return Run(folder, spec).train()


if __name__ == "__main__":
    sys.exit(serve_run(answer))
