"""A backend as seen from outside its child processes: gate, run, watch, record.

Nothing here imports a framework. A run passes the memory gate three times: before (forecast),
during (the worker checks itself, the watch the process tree, the kernel is the last line) and
after (the measured peak decides).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

from oodatcaa.domain.auto_fit import Filling
from oodatcaa.domain.memory import MemoryEstimate
from oodatcaa.domain.training import (
    BackendProbe,
    EvalRequest,
    EvalResult,
    FailureKind,
    InferenceProbe,
    RunFailure,
    RunRecord,
    RunStatus,
    TrainProgress,
    TrainSpec,
)
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.machine import gate_limit, total_memory
from oodatcaa.training.checkpoints import Resume
from oodatcaa.training.children import (
    DEFAULTS,
    ChildSettings,
    ask_child,
    child_command,
    child_environment,
    run_child,
)
from oodatcaa.training.estimate import (
    check_before,
    estimate_evaluation,
    estimate_forward,
    read_shape,
)
from oodatcaa.training.forecast import ProbeCache, Probed
from oodatcaa.training.formulas import EVALUATED
from oodatcaa.training.frameworks import HF, MLX, Framework
from oodatcaa.training.identity import data_facts, machine_facts, pinned, thread_facts
from oodatcaa.training.metrics import merge_measured, peak
from oodatcaa.training.models import ModelStore
from oodatcaa.training.protocol import (
    MEMORY_FILE,
    TRAIN_LOG,
    InferRequest,
    InferResult,
    ProbePoint,
    ProbeSize,
)
from oodatcaa.training.question import Question
from oodatcaa.training.reservation import Reservation, Reservations, default_reservations
from oodatcaa.training.runs import RunStore
from oodatcaa.training.tracking import FOLDER, track
from oodatcaa.training.verdict import judge
from oodatcaa.training.watching import ProgressTeller

PROBE_TOKENS = 4096
"""Batches of at most this many tokens are measured as they are: that is exact, and up to here takes
less time than three smaller ones of half the tokens."""
HOPELESS = 1.3
"""An analytic estimate this many times the limit needs no measuring to be believed."""
GATE_FILE = "estimate.json"
R = TypeVar("R")


class Models(Protocol):
    """Where a model's folder is; raises OodatcaaError for an unknown or unreachable name."""

    def resolve(self, model: str) -> Path: ...


@dataclass(frozen=True)
class _Request:
    """A spec whose model and data were found, and what it is expected to need."""

    spec: TrainSpec
    model_path: Path
    estimate: MemoryEstimate
    limit: int


class ChildBackend:
    """domain.ports.TrainingBackend for a framework whose work is done by children of ours."""

    framework: ClassVar[Framework]
    caches_frozen: ClassVar[bool] = False
    """See `domain.ports.TrainingBackend`."""

    def __init__(
        self,
        runs: RunStore,
        models: Models,
        *,
        reservations: Reservations | None = None,
        probes: ProbeCache | None = None,
        on_wait: Callable[[tuple[Reservation, ...]], None] | None = None,
        settings: ChildSettings = DEFAULTS,
        learns: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:
        """`learns`: every batch of a finished run had the worst shape of its data (a run made for
        measuring), so its peaks answer later forecasts."""
        self.learns = learns
        self.say = say
        self.runs = runs
        self.models = models
        self.reservations = reservations or default_reservations()
        self.probes = probes or ProbeCache()
        self.on_wait = on_wait
        self.settings = settings

    @property
    def name(self) -> str:
        return self.framework.name

    def child(self, work: str) -> str:
        """Which child does `worker`, `evaluate` or `infer`: `<backend>.<module>`."""
        return f"{self.name}.{work}"

    def probe(self) -> BackendProbe:
        return self.framework.probe()

    def estimate(self, spec: TrainSpec) -> MemoryEstimate:
        """From config and headers alone; raises OodatcaaError for an unknown model.

        Data that is there bounds the lengths; without it every row counts as `max_seq_length`.
        """
        return self._ask(spec, Path(self.models.resolve(spec.model))).analytic

    def blocks(self, spec: TrainSpec) -> int:
        """How many blocks the model has."""
        return read_shape(Path(self.models.resolve(spec.model)).resolve()).num_layers

    def trained_blocks(self, spec: TrainSpec) -> int:
        """How many of the model's blocks `spec` trains."""
        return spec.params.trained_blocks(self.blocks(spec))

    def filling(self, spec: TrainSpec) -> Filling | None:
        """How well the spec's training examples fill rows; None where nothing could be counted."""
        return self._ask(spec, Path(self.models.resolve(spec.model)).resolve()).filling

    def forecast(
        self,
        spec: TrainSpec,
        *,
        budget: int = PROBE_TOKENS,
        should_stop: Callable[[], bool] | None = None,
    ) -> MemoryEstimate:
        """What a probe says about the worst batch that the data allow.

        Measures it when it has at most `budget` tokens, else smaller ones unless an earlier probe
        of the same family answers; nothing when that very batch was measured before, or when the
        analytic estimate is hopeless. A probe
        that itself ends at the memory gate makes the estimate one that does not fit. Raises
        OodatcaaError for an unknown model or a probe that fails for another reason, `child.stopped`
        or `reservation.stopped` when `should_stop` said so.
        """
        asked = self._ask(spec, Path(self.models.resolve(spec.model)).resolve())
        self.framework.must_be_installed()
        enough = asked.timed or (asked.known and asked.size.tokens > budget)
        if enough or asked.analytic.total_bytes > HOPELESS * asked.limit:
            return asked.answer()
        return self._measured(asked, budget, should_stop)

    def time_step(
        self,
        spec: TrainSpec,
        *,
        typical: bool = False,
        budget: int = PROBE_TOKENS,
        should_stop: Callable[[], bool] | None = None,
    ) -> tuple[MemoryEstimate, float | None]:
        """The forecast, and the measured seconds of one micro-step, both at the worst batch or,
        if `typical`, at the data's mean one.

        Measures unless this very batch was measured before. None: the probe met the limit. Raises
        OodatcaaError like `forecast`.
        """
        self.framework.must_be_installed()
        asked = self._ask(spec, Path(self.models.resolve(spec.model)).resolve())
        if typical:
            asked.ask_typical()
        if asked.timed:
            return asked.answer(), asked.step_seconds
        found = self._measured(asked, budget, should_stop)
        return found, asked.step_seconds if asked.known else None

    def _measured(
        self, asked: Question, budget: int, should_stop: Callable[[], bool] | None
    ) -> MemoryEstimate:
        need = max(1, asked.analytic.total_bytes)
        return self._within(
            need,
            asked.limit,
            "memory probe",
            should_stop,
            lambda allowance: asked.measure(budget, should_stop, allowance),
        )

    def _within(
        self,
        need: int,
        limit: int,
        label: str,
        should_stop: Callable[[], bool] | None,
        work: Callable[[Callable[[], int]], R],
    ) -> R:
        return self.reservations.within(
            min(need, limit),
            limit,
            work,
            label=label,
            should_stop=should_stop,
            on_wait=self.on_wait,
        )

    def find_resumable(
        self, spec: TrainSpec, say: Callable[[str], None] = lambda _: None
    ) -> Resume | None:
        """The checkpoint that `spec` could go on from; use `resume.apply(spec)`.

        `say` gets a word on each that is torn, or was made with another model, data or software.
        """
        ready = self._prepare(spec)
        machine = self.framework.machine(self.settings.fast_cpu)
        facts = {
            **data_facts(Path(ready.spec.data_dir)),
            **machine_facts(machine.processor, machine.blas),
            **thread_facts({**os.environ, **pinned(os.environ)}),
            "model": ModelStore().model_sha256(ready.model_path),
        }
        return self.runs.find_resumable(ready.spec, facts, say)

    def train(
        self,
        spec: TrainSpec,
        *,
        on_progress: Callable[[TrainProgress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> RunRecord:
        """Train under the memory gate; also a refused or failed run has its folder and record.

        Waits while other training on this machine holds the memory. Raises OodatcaaError only for
        a request that can not become a run (unknown model, no data), or was stopped while waiting.
        """
        self.framework.must_be_installed()
        request = self._prepare(spec)
        refused = check_before(request.estimate, request.limit)
        if refused is not None:
            run = self._create(request)
            return self._finish(run, RunStatus.FAILED, refused)
        need = max(1, request.estimate.total_bytes)
        label = f"training {spec.story or spec.model_name or Path(spec.model).name}"
        with self.reservations.reserve(
            need, request.limit, label=label, should_stop=should_stop, on_wait=self.on_wait
        ) as held:
            run = self._create(request)
            try:
                done = self._run(run, request, held, on_progress, should_stop)
            except BaseException as error:
                # Ctrl-C, or a callback's error: the child is gone by now, the run must say so.
                self._give_up(run, error)
                raise
        if self.learns and done.status is RunStatus.FINISHED:
            self._learn(request, done)
        if not self.learns:
            track(
                self.runs.folder(done),
                self.runs.root.parent / FOLDER,
                self.settings.trackers,
                child_environment(self.settings),
                self.say,
            )
        return done

    def _learn(self, request: _Request, run: RunRecord) -> None:
        if run.mlx_peak_bytes is None or run.process_peak_bytes is None:
            return
        if run.params.packing:
            # Its rows held what they happened to: longer examples in as long rows may take more.
            return
        asked = self._ask(request.spec, request.model_path)
        size = ProbeSize(
            batch=asked.size.batch, length=asked.size.length, targets=asked.size.targets
        )
        beside = asked.probed.beside_bytes
        point = ProbePoint(
            size=size,
            mlx_bytes=run.mlx_peak_bytes,
            # A run's record has the peak of the whole tree.
            process_bytes=max(0, run.process_peak_bytes - beside),
            step_seconds=run.seconds_per_iteration or 0.0,
        )
        self.probes.add(Probed(family=asked.family, points=(point,), beside_bytes=beside))

    def evaluate(
        self, request: EvalRequest, *, should_stop: Callable[[], bool] | None = None
    ) -> EvalResult:
        """Losses of base and adapter in a child of its own, under the request's memory limit.

        Raises OodatcaaError `child.stopped` or `reservation.stopped` when `should_stop` said so.
        """
        self.framework.must_be_installed()
        path = self.models.resolve(request.model)
        limit = gate_limit(request.memory_limit_bytes)
        need = self._forward_bytes(
            estimate_evaluation, path, request.max_seq_length, EVALUATED, request.quantize_bits
        )
        asked = request.evolve(model=str(path))
        child = self.child("evaluate")
        result, ended = self._within(
            need,
            limit,
            "evaluation",
            should_stop,
            lambda allowance: ask_child(
                child, asked, EvalResult, limit, self.settings, should_stop, allowance
            ),
        )
        return result.evolve(peak_memory_bytes=peak(result.peak_memory_bytes, ended.peak_bytes))

    def infer(
        self,
        model: str,
        adapter_dir: str | None,
        prompts: Sequence[str],
        max_tokens: int,
        *,
        memory_limit_bytes: int | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> tuple[InferenceProbe, ...]:
        """One probe per prompt, from one child that loads the model once, under the limit.

        Raises OodatcaaError when `should_stop` said so, like `evaluate`.
        """
        self.framework.must_be_installed()
        path = self.models.resolve(model)
        limit = gate_limit(memory_limit_bytes or total_memory())
        # A token is at least a byte of UTF-8.
        longest = max((len(prompt.encode()) for prompt in prompts), default=1) + max_tokens
        need = self._forward_bytes(estimate_forward, path, longest)
        request = InferRequest(
            model=str(path),
            adapter_dir=adapter_dir,
            prompts=tuple(prompts),
            max_tokens=max_tokens,
            memory_limit_bytes=limit,
        )
        child = self.child("infer")
        result, _ = self._within(
            need,
            limit,
            "answers",
            should_stop,
            lambda allowance: ask_child(
                child, request, InferResult, limit, self.settings, should_stop, allowance
            ),
        )
        return result.probes

    def _forward_bytes(
        self,
        estimate: Callable[..., MemoryEstimate],
        path: Path,
        length: int,
        rows: int = 1,
        quantize_bits: int | None = None,
    ) -> int:
        """What a pass over so many sequences is expected to need, without gradients."""
        return estimate(
            read_shape(path),
            max_seq_length=length,
            batch_size=rows,
            quantize_bits=quantize_bits,
            device=self.framework.device(),
            fast_cpu=self.settings.fast_cpu,
        ).total_bytes

    def _prepare(self, spec: TrainSpec) -> _Request:
        if spec.backend != self.name:
            raise OodatcaaError(
                "backend.mismatch", f"a spec for backend {spec.backend!r} reached {self.name!r}"
            )
        data = Path(spec.data_dir).resolve()
        missing = [n for n in ("train.jsonl", "valid.jsonl") if not (data / n).is_file()]
        if missing:
            raise OodatcaaError(
                "data.missing",
                f"{data} has no {' and no '.join(missing)}",
                hint="a data folder holds train.jsonl, valid.jsonl and test.jsonl",
            )
        path = self.models.resolve(spec.model).resolve()
        estimate = self._ask(spec, path).answer()
        ready = spec.evolve(
            model=str(path), model_name=spec.model_name or spec.model, data_dir=str(data)
        )
        limit = gate_limit(spec.memory_limit_bytes)
        return _Request(ready, path, estimate, limit)

    def _ask(self, spec: TrainSpec, model_path: Path) -> Question:
        return Question(spec, model_path, self.probes, self.settings, self.framework)

    def _create(self, request: _Request) -> RunRecord:
        run = self.runs.create(request.spec)
        run = run.evolve(
            estimated_peak_bytes=request.estimate.total_bytes,
            model_sha256=ModelStore().model_sha256(request.model_path),
        )
        self.runs.update(run)
        gate = self.runs.folder(run) / GATE_FILE
        gate.write_text(request.estimate.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return run

    def _run(
        self,
        run: RunRecord,
        request: _Request,
        held: Reservation,
        on_progress: Callable[[TrainProgress], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> RunRecord:
        folder = self.runs.folder(run).resolve()
        ended = run_child(
            child_command(self.child("worker"), folder),
            folder=folder,
            log=folder / TRAIN_LOG,
            limit=request.limit,
            samples=folder / MEMORY_FILE,
            on_start=lambda pid: self.runs.set_child(run, pid),
            on_tick=ProgressTeller(folder, on_progress) if on_progress else None,
            allowance=lambda: self.reservations.allowance(held),
            should_stop=should_stop,
            settings=self.settings,
            backend=self.name,
        )
        measured = merge_measured(run, folder)
        measured = measured.evolve(
            process_peak_bytes=peak(measured.process_peak_bytes, ended.peak_bytes),
            control_group=ended.grouped,
            longest_unwatched_seconds=round(ended.longest_gap, 4),
            peak_memory_bytes=peak(
                measured.peak_memory_bytes, ended.peak_bytes, *self._earlier_peaks(run)
            ),
        )
        measured, status, failure = judge(measured, folder, ended, request.limit)
        return self._finish(measured, status, failure)

    def _earlier_peaks(self, run: RunRecord) -> tuple[int, ...]:
        """Of every run that this one goes on from: one that was killed holds its own alone."""
        found: list[int] = []
        while run.resumed_from is not None:
            try:
                run = self.runs.read(self.name, run.resumed_from)
            except OodatcaaError:
                break  # somebody removed that folder meanwhile: this run is whole all the same
            found += [run.peak_memory_bytes] if run.peak_memory_bytes is not None else []
        return tuple(found)

    def _finish(self, run: RunRecord, status: RunStatus, failure: RunFailure | None) -> RunRecord:
        final = run.evolve(status=status, failure=failure, finished_at=datetime.now(UTC))
        try:
            self.runs.finish(final)
        except OSError as error:
            raise OodatcaaError(
                "run.not_recorded",
                f"run {run.run_id} is over but its record can not be written: {error}",
                hint="free some space, then: oodatcaa runs (everything else is kept)",
            ) from error
        return final

    def _give_up(self, run: RunRecord, error: BaseException) -> None:
        folder = self.runs.folder(run)
        failure = RunFailure(
            kind=FailureKind.INTERRUPTED,
            message=f"interrupted: {type(error).__name__} {error}".rstrip(),
            hint=f"oodatcaa resume {run.run_id}",
        )
        with contextlib.suppress(OodatcaaError, OSError):  # the first error is the one to show
            self._finish(merge_measured(run, folder), RunStatus.STOPPED, failure)


class MlxBackend(ChildBackend):
    """mlx-lm: Metal, CUDA or the CPU."""

    framework = MLX
    caches_frozen = True


class HfBackend(ChildBackend):
    """transformers and PEFT on PyTorch: CUDA, Metal or the CPU; float32 weights."""

    framework = HF
