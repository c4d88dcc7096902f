"""What the end of a training child means: the record's numbers, its status, and why it failed."""

from __future__ import annotations

from pathlib import Path

from oodatcaa.domain.training import FailureKind, RunFailure, RunRecord, RunStatus
from oodatcaa.training.children import read_result
from oodatcaa.training.endings import (
    Ended,
    crash_failure,
    log_tail,
    memory_failure,
    memory_stop,
)
from oodatcaa.training.metrics import finite, peak
from oodatcaa.training.protocol import (
    EXIT_DESCRIBED,
    EXIT_OK,
    TRAIN_LOG,
    ChildError,
    WorkerResult,
)


def judge(
    run: RunRecord, folder: Path, ended: Ended, limit: int
) -> tuple[RunRecord, RunStatus, RunFailure | None]:
    """The record with what the worker reported, the status and the failure.

    The memory gate's last layer is here: a run whose measured peak is over `limit` has failed,
    however well it ended.
    """
    log = folder / TRAIN_LOG
    result = read_result(folder, WorkerResult)
    if isinstance(result, WorkerResult):
        run = _merge(run, result)
    if not isinstance(result, WorkerResult) or ended.over_bytes is not None:
        stopped = memory_stop(ended, log, limit)
        if stopped is not None:
            return run, RunStatus.FAILED, stopped
    if isinstance(result, ChildError) and ended.exit_code == EXIT_DESCRIBED:
        kind = FailureKind.DISK_FULL if "disk_full" in result.code else FailureKind.BAD_INPUT
        message = f"{result.message} [{result.code}]"
        return run, RunStatus.FAILED, RunFailure(kind=kind, message=message, hint=result.hint)
    if not isinstance(result, WorkerResult) or ended.exit_code not in (EXIT_OK, EXIT_DESCRIBED):
        if ended.asked_to_stop:
            return run, RunStatus.STOPPED, _interrupted(run)
        return run, RunStatus.FAILED, crash_failure(ended, log)
    if result.status is RunStatus.RUNNING or (
        result.status is RunStatus.FINISHED and ended.exit_code != EXIT_OK
    ):
        return run, RunStatus.FAILED, crash_failure(ended, log)
    if result.status is RunStatus.FINISHED and (run.peak_memory_bytes or 0) > limit:
        failure = memory_failure(run.peak_memory_bytes or 0, limit, None)
        return run, RunStatus.FAILED, failure
    failure_found = result.failure
    if result.status is RunStatus.FAILED and failure_found is None:
        tail = log_tail(log, 1)
        text = f"the worker failed without saying why: {tail[0] if tail else 'its log is empty'}"
        failure_found = RunFailure(kind=FailureKind.CRASH, message=text, hint=f"read {log}")
    return run, result.status, failure_found


def _interrupted(run: RunRecord) -> RunFailure:
    return RunFailure(
        kind=FailureKind.INTERRUPTED,
        message="stopped on request",
        hint=f"oodatcaa resume {run.run_id}",
    )


def _merge(run: RunRecord, result: WorkerResult) -> RunRecord:
    mlx_peak = peak(run.mlx_peak_bytes, result.mlx_peak_bytes)
    return run.evolve(
        iterations_done=result.iterations_done,
        optimizer_steps=result.optimizer_steps,
        trained_tokens=result.trained_tokens,
        tokens_per_second=result.tokens_per_second,
        mlx_peak_bytes=mlx_peak,
        peak_memory_bytes=peak(run.peak_memory_bytes, mlx_peak),
        train_losses=finite(result.train_losses),
        valid_losses=finite(result.valid_losses),
        adapter_sha256=result.adapter_sha256,
        adapter_iteration=result.adapter_iteration,
        stopped_early=result.stopped_early,
        versions=result.versions,
        machine=result.machine or run.machine,
    )
