"""The training child: `python -m oodatcaa.training.mlx.worker RUN_FOLDER`.

Reads spec.json, trains, writes result.json (WorkerResult). Exit code 0 when the run finished, 3
when result.json describes why it did not.
"""

from __future__ import annotations

import sys
from pathlib import Path

from oodatcaa.domain.base import Record
from oodatcaa.domain.training import RunStatus, TrainSpec
from oodatcaa.training.mlx.blas import preload
from oodatcaa.training.protocol import EXIT_DESCRIBED, SPEC_FILE, WorkerResult
from oodatcaa.training.serving import read_request, serve


def main() -> int:
    outcome: list[RunStatus] = []

    def answer(folder: Path) -> Record:
        spec = read_request(folder, TrainSpec, SPEC_FILE)
        blas = preload()
        # mlx must not be imported before the BLAS is in place.
        from oodatcaa.training.mlx.guard import walled
        from oodatcaa.training.mlx.trainer import Run

        with walled(folder, spec.memory_limit_bytes):
            result: WorkerResult = Run(folder, spec, blas).train()
        outcome.append(result.status)
        return result

    code = serve(answer)
    if code == 0 and outcome[0] is not RunStatus.FINISHED:
        return EXIT_DESCRIBED
    return code


if __name__ == "__main__":
    sys.exit(main())
