"""What every training backend keeps, in real tiny runs: subclass BackendContract and name yours.

One uninterrupted run is the reference of a class; what stops, kills or changes a run is compared
with it.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from oodatcaa.domain.memory import MemoryLayer, MemoryStop
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import (
    EvalRequest,
    FailureKind,
    RunRecord,
    RunStatus,
    TrainProgress,
    TrainSpec,
)
from oodatcaa.training.backend import ChildBackend
from oodatcaa.training.forecast import ProbeCache
from oodatcaa.training.reservation import Reservations
from oodatcaa.training.runs import RunStore
from tiny_model import make_tiny_data, make_tiny_model

MB = 1_000_000
STEPS = 24
PARAMS = QLoRA(
    rank=4, alpha=8, iters=STEPS, batch_size=2, num_layers=2, max_seq_length=64, dropout=0.1,
    grad_accumulation_steps=2, steps_per_eval=12, val_batches=1, save_every=4, learning_rate=2e-3,
    grad_checkpoint=True, grad_checkpoint_layers=1,
)  # fmt: skip
EATS = "eaten = b'x' * 2_000_000_000\n"


class Folders:
    """Models are folders here."""

    def resolve(self, model: str) -> Path:
        return Path(model)


class BackendContract:
    """`adapter_file` is what the backend's adapters are called."""

    backend_kind: ClassVar[type[ChildBackend]]
    adapter_file: ClassVar[str]
    limit_bytes: ClassVar[int] = 1_500 * MB

    @pytest.fixture(scope="class")
    @classmethod
    def place(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("contract")

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls, place: Path) -> ChildBackend:
        return cls.backend_kind(
            RunStore(place / "runs"),
            Folders(),
            reservations=Reservations(place / "ledger"),
            probes=ProbeCache(place / "probes"),
        )

    @pytest.fixture(scope="class")
    @classmethod
    def spec(cls, place: Path, backend: ChildBackend) -> TrainSpec:
        model = make_tiny_model(place / "model", quantized=False)
        data = make_tiny_data(place / "data")
        return TrainSpec(
            backend=backend.name, model=str(model), data_dir=str(data), params=PARAMS,
            story="S1", task="T1", attempt=2,
        )  # fmt: skip

    @pytest.fixture(scope="class")
    @classmethod
    def run(cls, backend: ChildBackend, spec: TrainSpec) -> RunRecord:
        """The uninterrupted one."""
        done = backend.train(spec)
        assert done.failure is None, done.failure
        return done

    def test_run_json_says_what_was_done(
        self, backend: ChildBackend, spec: TrainSpec, run: RunRecord
    ) -> None:
        assert run.status is RunStatus.FINISHED
        assert (run.backend, run.model) == (backend.name, spec.model)
        assert (run.story, run.task, run.attempt) == ("S1", "T1", 2)
        assert (run.iterations_done, run.optimizer_steps) == (STEPS, STEPS // 2)
        assert run.params == PARAMS
        assert len(run.model_sha256) == len(run.adapter_sha256 or "") == 64
        assert run.machine is not None
        assert run.versions["oodatcaa"]
        assert (run.trained_tokens or 0) > 0
        assert (run.tokens_per_second or 0) > 0
        assert run.peak_memory_bytes == max(run.process_peak_bytes or 0, run.mlx_peak_bytes or 0)
        assert run.train_losses[-1].loss < run.train_losses[0].loss
        assert [point.iteration for point in run.valid_losses] == [0, 12, 24]
        stored = json.loads((backend.runs.folder(run) / "run.json").read_text())
        assert RunRecord.model_validate(stored) == run
        names = {path.name for path in backend.runs.folder(run).iterdir()}
        assert {"spec.json", "memory.jsonl", "metrics.jsonl", "train.log"} <= names
        assert backend.reservations.holders() == ()

    def test_metrics_have_every_step_once(self, backend: ChildBackend, run: RunRecord) -> None:
        assert steps(backend, run) == list(range(1, STEPS + 1))

    def test_the_adapter_is_loaded_by_the_judge_and_for_a_reply(
        self, backend: ChildBackend, spec: TrainSpec, run: RunRecord
    ) -> None:
        adapters = backend.runs.folder(run) / "adapters"
        assert (adapters / self.adapter_file).is_file()
        found = backend.evaluate(
            EvalRequest(model=spec.model, adapter_dir=str(adapters), data_dir=spec.data_dir)
        )
        assert found.adapter_sha256 == run.adapter_sha256
        assert (found.drop or 0) > 0
        (reply,) = backend.infer(spec.model, str(adapters), ["Write add_1(x)."], 4)
        assert 0 < reply.generation.tokens <= 4

    def test_without_batches_to_validate_on_it_trains_all_the_same(
        self, backend: ChildBackend, spec: TrainSpec
    ) -> None:
        done = backend.train(spec.evolve(params=PARAMS.evolve(val_batches=0, iters=4)))
        assert done.failure is None, done.failure
        assert done.valid_losses == ()

    def test_after_kill_9_it_goes_on_to_the_same_bits(
        self, backend: ChildBackend, spec: TrainSpec, run: RunRecord
    ) -> None:
        killed = backend.train(spec, on_progress=at_iteration(5, kill_worker))
        assert killed.status is RunStatus.FAILED
        assert killed.failure is not None
        assert killed.failure.kind is FailureKind.KILLED, killed.failure
        assert killed.iterations_done < STEPS
        found = backend.find_resumable(spec)
        assert found is not None
        assert found.run_id == killed.run_id
        again = backend.train(found.apply(spec))
        assert again.failure is None, again.failure
        assert again.resumed_from == killed.run_id
        assert again.adapter_sha256 == run.adapter_sha256
        assert again.train_losses == run.train_losses
        assert steps(backend, again) == list(range(1, STEPS + 1))

    @pytest.mark.slow
    def test_packed_it_learns_and_after_kill_9_goes_on_to_the_same_bits(
        self, backend: ChildBackend, spec: TrainSpec, run: RunRecord
    ) -> None:
        packed = spec.evolve(params=PARAMS.evolve(packing=True, max_seq_length=128))
        whole = backend.train(packed)
        assert whole.failure is None, whole.failure
        assert whole.train_losses[-1].loss < whole.train_losses[0].loss
        # The same split, unpacked, and the same model.
        assert whole.valid_losses[0].loss == pytest.approx(run.valid_losses[0].loss, rel=1e-4)
        assert (whole.trained_tokens or 0) > 1.5 * (run.trained_tokens or 0)
        killed = backend.train(packed, on_progress=at_iteration(5, kill_worker))
        assert killed.failure is not None
        assert killed.failure.kind is FailureKind.KILLED, killed.failure
        found = backend.find_resumable(packed)
        assert found is not None
        assert found.run_id == killed.run_id
        again = backend.train(found.apply(packed))
        assert again.failure is None, again.failure
        assert again.adapter_sha256 == whole.adapter_sha256
        assert again.train_losses == whole.train_losses
        assert steps(backend, again) == list(range(1, STEPS + 1))

    def test_a_changed_spec_data_or_model_is_refused_by_name(
        self, backend: ChildBackend, spec: TrainSpec, run: RunRecord, tmp_path: Path
    ) -> None:
        newest = sorted((backend.runs.folder(run) / "checkpoints").glob("0*"))[0]
        other = spec.evolve(
            params=PARAMS.evolve(learning_rate=1e-4, grad_checkpoint_layers=None),
            data_dir=str(make_tiny_data(tmp_path / "data", 30)),
            model=str(make_tiny_model(tmp_path / "model", quantized=False, seed=1)),
            resume_from=str(newest),
            start_iteration=int(newest.name),
        )
        refused = backend.train(other)
        assert refused.failure is not None
        assert refused.failure.kind is FailureKind.BAD_INPUT
        for name in ("learning_rate", "grad_checkpoint_layers", "train.jsonl", "model:"):
            assert name in refused.failure.message

    def test_asked_to_stop_it_keeps_a_checkpoint(
        self, backend: ChildBackend, spec: TrainSpec
    ) -> None:
        seen: list[TrainProgress] = []
        long = spec.evolve(params=PARAMS.evolve(iters=4000, steps_per_eval=9000, save_every=9000))
        stopped = backend.train(
            long,
            on_progress=seen.append,
            should_stop=lambda: bool(seen) and seen[-1].iteration >= 3,
        )
        assert stopped.status is RunStatus.STOPPED
        assert stopped.failure is not None
        assert stopped.failure.kind is FailureKind.INTERRUPTED
        found = backend.find_resumable(long)
        assert found is not None
        group = PARAMS.grad_accumulation_steps
        whole = stopped.iterations_done // group * group  # a checkpoint holds whole groups
        assert (found.run_id, found.iteration) == (stopped.run_id, whole)

    def test_the_memory_gate_before_and_during_are_told_apart(
        self,
        backend: ChildBackend,
        spec: TrainSpec,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        huge = PARAMS.evolve(batch_size=4096, max_seq_length=2048, mask_prompt=False)
        run = backend.train(spec.evolve(params=huge, memory_limit_bytes=2_000 * MB))
        assert run.failure is not None
        assert run.failure.kind is FailureKind.MEMORY_GATE
        assert (run.failure.layer, run.failure.stop) == (
            MemoryLayer.BEFORE,
            MemoryStop.PREFLIGHT,
        )
        (tmp_path / "sitecustomize.py").write_text(EATS)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        run = backend.train(spec.evolve(memory_limit_bytes=self.limit_bytes))
        assert run.failure is not None
        assert run.failure.kind is FailureKind.MEMORY_GATE
        assert run.failure.layer is MemoryLayer.DURING
        assert run.failure.stop in (MemoryStop.WATCHER, MemoryStop.KERNEL, MemoryStop.STEP)
        assert not list((backend.runs.folder(run) / "adapters").glob("*.safetensors"))


def steps(backend: ChildBackend, run: RunRecord) -> list[int]:
    """Iterations that metrics.jsonl has a line of training for, in its order."""
    text = (backend.runs.folder(run) / "metrics.jsonl").read_text()
    lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    return [line["iteration"] for line in lines if line["kind"] == "train"]


def at_iteration(number: int, act: Callable[[], None]) -> Callable[[TrainProgress], None]:
    done: list[bool] = []

    def told(progress: TrainProgress) -> None:
        if progress.iteration >= number and not done:
            done.append(True)
            act()

    return told


def kill_worker() -> None:
    """SIGKILL for the process that trains; not for the one that supervises it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        ours = [p for p in psutil.Process().children(recursive=True) if p.is_running()]
        workers = [p for p in ours if any(".worker" in part for part in p.cmdline())]
        workers[-1].send_signal(signal.SIGKILL)
