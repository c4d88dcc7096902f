"""One training run inside its child, whatever framework computes it."""

from __future__ import annotations

import json
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from oodatcaa.domain.training import FailureKind, Machine, RunFailure, RunStatus, TrainSpec
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.files import write_atomic
from oodatcaa.training import identity as facts
from oodatcaa.training.checkpoints import (
    CheckpointNote,
    RunIdentity,
    adopt,
    checkpoint_name,
    verify,
)
from oodatcaa.training.examples import Examples, read_split
from oodatcaa.training.identity import installed_versions
from oodatcaa.training.models import ModelStore
from oodatcaa.training.monitor import Monitor
from oodatcaa.training.progress import (
    DISK_FULL,
    DiskFullError,
    ProgressWriter,
    Stop,
    disk_full,
    not_finite,
)
from oodatcaa.training.protocol import (
    ADAPTER_CONFIG_FILE,
    ADAPTERS_DIR,
    CHECKPOINTS_DIR,
    METRICS_FILE,
    WorkerResult,
)
from oodatcaa.training.wall import Counters


class TrainingRun(ABC):
    """The state of one worker process. `train()` never raises for what a run can end with."""

    counters: Counters

    def __init__(self, folder: Path, spec: TrainSpec) -> None:
        self.folder, self.spec = folder, spec
        self.params = spec.params
        self.progress = ProgressWriter(folder, self.params.iters, spec.memory_limit_bytes)
        self.monitor: Monitor | None = None
        self.examples = Examples((), {}, {})
        self.stop_asked = False
        self.stopped_early = ""
        self.enough: Callable[[int, float], str] | None = None
        self.ready: Callable[[], object] = lambda: None
        """Called once, when everything is loaded and made, before the first validation."""

    @abstractmethod
    def run(self) -> str:
        """Load, train, save; the adapter's sha256. Raises Stop, OodatcaaError, OSError."""

    @abstractmethod
    def machine(self) -> Machine: ...

    @abstractmethod
    def tokenize(self, rows: list[dict[str, Any]], tokenizer: Any) -> Examples: ...

    def train(self) -> WorkerResult:
        """Load, train, check, save. Whatever happens, the result says how far it got."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.signal(signal.SIGCONT, self._on_sigcont)
        self.progress.say("loading")
        if warning := facts.too_many_threads(os.environ):
            print(f"warning: {warning}", flush=True)
        try:
            digest = self.run()
        except Stop as stop:
            return self._result(stop.failure)
        except OodatcaaError as error:
            return self._result(_bad_input(error))
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            last = self.monitor.saved if self.monitor else None
            return self._result(disk_full(DiskFullError(str(error)), last))
        done = self.monitor.iteration if self.monitor else self.params.iters
        self.progress.say("finished", iteration=done)
        return self._result(None, digest)

    def read_examples(self, tokenizer: Any) -> Examples:
        """Fills `examples`; the valid split. Raises OodatcaaError `data.*`."""
        self.examples = self._split("train", tokenizer)
        valid = self._split("valid", tokenizer)
        if not self.examples.items:
            raise _no_examples(self.spec, self.examples)
        if self.params.selects and not valid.items:
            raise _nothing_to_select_by(self.spec)
        return valid

    def identity(self, device: str) -> RunIdentity:
        """What a resumed run must share with this one."""
        model = Path(self.spec.model)
        machine = self.machine()
        return RunIdentity(
            facts={
                **facts.parameter_facts(self.params),
                **facts.data_facts(Path(self.spec.data_dir)),
                **facts.machine_facts(machine.processor, machine.blas),
                **facts.thread_facts(os.environ),
                "model": ModelStore().model_sha256(model) if model.is_dir() else self.spec.model,
                "device": device,
            }
        )

    def resume(self, restore: Callable[[Path, int], CheckpointNote]) -> CheckpointNote | None:
        """Have `restore(checkpoint, start iteration)` put the spec's checkpoint back, and take over
        its metrics and the best weights so far. None for a run from the beginning."""
        if self.spec.resume_from is None:
            return None
        source = Path(self.spec.resume_from)
        note = restore(source, self.spec.start_iteration)
        self._take_over(source, note)
        return note

    def _take_over(self, source: Path, note: CheckpointNote) -> None:
        """The metrics of the run that `source` is from, and the best weights so far."""
        write_atomic(self.folder / METRICS_FILE, (source / METRICS_FILE).read_bytes())
        own = self.folder / CHECKPOINTS_DIR
        # Linked: this run can be resumed from its first moment on, and selects among all weights.
        adopt(source, own)
        if self.params.select_best and note.selection.checkpoint is not None:
            best = source.with_name(checkpoint_name(note.selection.checkpoint))
            verify(best)
            adopt(best, own)
        print(f"resumed after iteration {note.iteration} from {source}", flush=True)

    def must_be_finite(self, bad: Sequence[str], count: int) -> None:
        """Raises Stop when `bad` names some of an adapter's `count` tensors."""
        if bad:
            raise Stop(not_finite(f"{bad[0]} ({len(bad)} of {count} adapter tensors)"))

    def write_adapter_config(self, config: Mapping[str, Any]) -> None:
        path = self.folder / ADAPTERS_DIR / ADAPTER_CONFIG_FILE
        write_atomic(path, json.dumps(config, indent=1) + "\n")

    def no_space(self, error: DiskFullError) -> Stop:
        return Stop(disk_full(error, self.monitor.saved if self.monitor else None))

    def _on_sigterm(self, *_: Any) -> None:
        self.stop_asked = True
        if self.monitor is not None:
            self.monitor.interrupted = True

    def _on_sigcont(self, *_: Any) -> None:
        if self.monitor is not None:
            self.monitor.woken = True

    def _split(self, name: str, tokenizer: Any) -> Examples:
        path = Path(self.spec.data_dir) / f"{name}.jsonl"
        if name == "valid" and not path.exists():
            return Examples((), {}, {})
        return self.tokenize(read_split(path), tokenizer)

    def _result(self, failure: RunFailure | None, digest: str | None = None) -> WorkerResult:
        status = RunStatus.FINISHED
        if failure is not None:
            stopped = failure.kind is FailureKind.INTERRUPTED
            status = RunStatus.STOPPED if stopped else RunStatus.FAILED
            self._say_failed()
        m, p = self.monitor, self.params
        done = m.iteration if m else 0
        return WorkerResult(
            status=status,
            failure=failure,
            iterations_done=done,
            optimizer_steps=p.steps_after(done),
            trained_tokens=m.tokens if m else 0,
            tokens_per_second=m.tokens / m.seconds if m and m.seconds else None,
            mlx_peak_bytes=self.counters.peak() or None,
            train_losses=tuple(m.train_losses) if m else (),
            valid_losses=tuple(m.valid_losses) if m else (),
            adapter_sha256=digest,
            adapter_iteration=self._adapter_iteration() if digest else None,
            stopped_early=self.stopped_early,
            versions=installed_versions(),
            machine=self.machine(),
            dropped_examples=self.examples.dropped,
            notes=_notes(self.examples),
        )

    def _adapter_iteration(self) -> int | None:
        if self.monitor is None:
            return None
        best = self.monitor.selection.checkpoint if self.params.select_best else None
        return self.monitor.iteration if best is None else best

    def _say_failed(self) -> None:
        try:
            self.progress.say("failed")
        except OSError as error:
            # A full disk must not hide the failure that result.json is about to describe.
            print(f"progress.json could not be written: {error}", flush=True)


def _bad_input(error: OodatcaaError) -> RunFailure:
    lines = [error.message, *(d for d in error.details if d not in error.message)]
    return RunFailure(kind=FailureKind.BAD_INPUT, message="; ".join(lines), hint=error.hint)


def _no_examples(spec: TrainSpec, examples: Examples) -> OodatcaaError:
    why = [f"{reason} ({count})" for reason, count in examples.dropped.items()]
    return OodatcaaError(
        "data.empty",
        f"{spec.data_dir}/train.jsonl has no example that could be trained on",
        hint="raise max_seq_length or shorten the prompts",
        details=why,
    )


def _nothing_to_select_by(spec: TrainSpec) -> OodatcaaError:
    return OodatcaaError(
        "data.empty",
        f"{spec.data_dir}/valid.jsonl has no example that weights could be selected by",
        hint="add validation examples, or leave select_best and early_stopping_patience out",
    )


def _notes(examples: Examples) -> tuple[str, ...]:
    return tuple(f"{count} training examples: {reason}" for reason, count in examples.notes.items())
