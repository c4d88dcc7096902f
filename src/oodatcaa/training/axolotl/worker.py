"""The training child: `python -m oodatcaa.training.axolotl.worker RUN_FOLDER`.

Writes axolotl.yaml beside spec.json, runs `axolotl train`, and reads what it left. Exit code 0 when
the run finished, 3 when result.json describes why it did not.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from oodatcaa.domain.training import FailureKind, LossPoint, RunFailure, RunStatus, TrainSpec
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.files import write_atomic
from oodatcaa.training.axolotl.config import axolotl_config
from oodatcaa.training.examples import read_split
from oodatcaa.training.frameworks import AXOLOTL
from oodatcaa.training.hashes import file_sha256
from oodatcaa.training.identity import installed_versions
from oodatcaa.training.progress import ProgressWriter, not_finite
from oodatcaa.training.protocol import (
    ADAPTER_CONFIG_FILE,
    ADAPTERS_DIR,
    PEFT_ADAPTER_FILE,
    SPEC_FILE,
    WorkerResult,
)
from oodatcaa.training.serving import read_request, serve_run
from oodatcaa.training.shapes import read_shape

CONFIG_FILE = "axolotl.yaml"
OUTPUT_DIR = "axolotl"
STATE = "trainer_state.json"


def answer(folder: Path) -> WorkerResult:
    spec = read_request(folder, TrainSpec, SPEC_FILE)
    progress = ProgressWriter(folder, spec.params.iters, spec.memory_limit_bytes)
    progress.say("loading")
    try:
        write_config(folder, spec)
    except OodatcaaError as error:
        return _result(spec, [], _failed(FailureKind.BAD_INPUT, "; ".join(error.details)))
    progress.say("training")
    code, stopped = _run([_command(), "train", CONFIG_FILE], folder)
    history = read_history(folder / OUTPUT_DIR)
    if stopped:
        return _result(spec, history, _failed(FailureKind.INTERRUPTED, "stopped on request"))
    if code:
        return _result(
            spec, history, _failed(FailureKind.CRASH, f"axolotl ended with exit code {code}")
        )
    bad = next((e for e in history if not math.isfinite(e.get("loss", 0.0))), None)
    if bad is not None:
        return _result(spec, history, not_finite(f"the loss of step {bad['step']}"))
    progress.say("saving")
    return _result(spec, history, None, _keep_adapter(folder))


def write_config(folder: Path, spec: TrainSpec) -> Path:
    """axolotl.yaml. Raises OodatcaaError `train.bad_params`, `data.*`, `model.unreadable`."""
    first = read_split(Path(spec.data_dir) / "train.jsonl")[:1]
    rows = next((k for k in ("messages", "prompt", "text") if first and k in first[0]), "messages")
    config = axolotl_config(spec, read_shape(Path(spec.model)), rows, OUTPUT_DIR)
    text = f"# axolotl train {CONFIG_FILE}\n" + yaml.safe_dump(config, sort_keys=False)
    write_atomic(folder / CONFIG_FILE, text)
    return folder / CONFIG_FILE


def _command() -> str:
    """Beside this interpreter first: another axolotl on the path has other packages."""
    here = Path(sys.executable).parent / "axolotl"
    found = str(here) if here.is_file() else shutil.which("axolotl")
    if found is None:
        raise OodatcaaError(
            "backend.unavailable", "the command axolotl was not found", hint=AXOLOTL.install
        )
    return found


def _run(argv: list[str], folder: Path) -> tuple[int, bool]:
    """Its output is this process's: the run's log. SIGTERM is passed on."""
    asked: list[int] = []
    with subprocess.Popen(argv, cwd=folder) as child:

        def stop(number: int, _: object) -> None:
            asked.append(number)
            child.terminate()

        signal.signal(signal.SIGTERM, stop)
        return child.wait(), bool(asked)


def read_history(output: Path) -> list[dict[str, Any]]:
    """The Trainer's log entries, from its newest state file; nothing when it left none."""
    states = [output / STATE, *output.glob(f"checkpoint-*/{STATE}")]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in states if path.is_file()]
    newest: dict[str, Any] = max(
        found, key=lambda state: int(state.get("global_step", 0)), default={}
    )
    return [entry for entry in newest.get("log_history", []) if "step" in entry]


def _steps_done(state: dict[str, Any]) -> int:
    return int(state.get("global_step", 0))


def _keep_adapter(folder: Path) -> str:
    target = folder / ADAPTERS_DIR
    target.mkdir(exist_ok=True)
    for name in (PEFT_ADAPTER_FILE, ADAPTER_CONFIG_FILE):
        shutil.copyfile(folder / OUTPUT_DIR / name, target / name)
    return file_sha256(target / PEFT_ADAPTER_FILE)


def _failed(kind: FailureKind, message: str) -> RunFailure:
    return RunFailure(kind=kind, message=message, hint="read train.log in the run's folder")


def _result(
    spec: TrainSpec,
    history: list[dict[str, Any]],
    failure: RunFailure | None,
    digest: str | None = None,
) -> WorkerResult:
    p = spec.params

    def points(key: str) -> tuple[LossPoint, ...]:
        return tuple(
            LossPoint(
                iteration=min(int(e["step"]) * p.grad_accumulation_steps, p.iters), loss=e[key]
            )
            for e in history
            if key in e and math.isfinite(e[key])
        )

    steps = max((int(entry["step"]) for entry in history), default=0)
    status = RunStatus.FINISHED
    if failure is not None:
        stopped = failure.kind is FailureKind.INTERRUPTED
        status = RunStatus.STOPPED if stopped else RunStatus.FAILED
    return WorkerResult(
        status=status,
        failure=failure,
        iterations_done=min(steps * p.grad_accumulation_steps, p.iters),
        optimizer_steps=steps,
        trained_tokens=0,
        tokens_per_second=None,
        mlx_peak_bytes=None,
        train_losses=points("loss"),
        valid_losses=points("eval_loss"),
        adapter_sha256=digest,
        adapter_iteration=p.iters if digest else None,
        versions=installed_versions(),
        machine=AXOLOTL.machine(False),
        notes=(f"axolotl's own checkpoints are in {OUTPUT_DIR}/",),
    )


if __name__ == "__main__":
    sys.exit(serve_run(answer))
