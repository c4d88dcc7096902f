"""The MLX backend from outside: real tiny runs, a real gate, real kills."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from ledger_holders import end, holder
from oodatcaa.domain.memory import MemoryLayer
from oodatcaa.domain.ports import TrainingBackend
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import EvalRequest, FailureKind, RunStatus, TrainProgress, TrainSpec
from oodatcaa.errors import OodatcaaError, RefusedError
from oodatcaa.kit.memory import read_samples
from oodatcaa.kit.process import is_alive
from oodatcaa.training.backend import MlxBackend
from oodatcaa.training.backends import BACKENDS, make_backend
from oodatcaa.training.endings import Ended
from oodatcaa.training.estimate import estimate_evaluation, read_shape
from oodatcaa.training.forecast import ProbeCache
from oodatcaa.training.formulas import EVALUATED
from oodatcaa.training.protocol import WorkerResult
from oodatcaa.training.question import Question
from oodatcaa.training.reservation import Reservation, Reservations
from oodatcaa.training.runs import Owner, RunStore
from oodatcaa.training.verdict import judge
from oodatcaa.training.watching import PLOT_FILE
from tiny_model import make_tiny_data, make_tiny_model

MB = 1_000_000
SMALL = QLoRA(
    rank=4, alpha=8, iters=6, batch_size=2, num_layers=2, max_seq_length=64,
    steps_per_eval=3, val_batches=1, save_every=3, learning_rate=1e-3,
)  # fmt: skip
SRC = Path(__file__).parents[2] / "src"
ATE = """
import os, sys
if os.environ.get("EAT_MEMORY"):
    eaten = b"x" * int(os.environ["EAT_MEMORY"])
if os.environ.get("ABORT_AT_START"):
    os.write(2, b"about to abort\\n")
    os.abort()
"""


class Folders:
    """Models are folders here."""

    def resolve(self, model: str) -> Path:
        return Path(model)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def backend(tmp_path: Path) -> MlxBackend:
    return MlxBackend(
        RunStore(tmp_path / "runs"),
        Folders(),
        reservations=Reservations(tmp_path / "ledger"),
        probes=ProbeCache(tmp_path / "probes"),
    )


@pytest.fixture
def spec(tiny: Path, data: Path) -> TrainSpec:
    return TrainSpec(model=str(tiny), data_dir=str(data), params=SMALL)


@pytest.fixture
def spoiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Every Python child first runs a sitecustomize of ours: somebody else's code in the worker."""
    place = tmp_path / "site"
    place.mkdir()
    (place / "sitecustomize.py").write_text(ATE)
    monkeypatch.setenv("PYTHONPATH", str(place))
    return monkeypatch


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_it_is_a_training_backend(backend: MlxBackend) -> None:
    ports: list[TrainingBackend] = [
        make_backend(name, backend.runs, backend.models) for name in BACKENDS
    ]
    assert [port.name for port in ports] == ["mlx", "hf", "axolotl"]


def test_a_run_ends_with_a_whole_record_a_plot_and_latest(
    backend: MlxBackend, spec: TrainSpec
) -> None:
    told: list[TrainProgress] = []
    run = backend.train(spec, on_progress=told.append)
    assert run.failure is None
    assert run.status is RunStatus.FINISHED
    assert run.iterations_done == 6
    assert [point.iteration for point in run.train_losses] == [1, 2, 3, 4, 5, 6]
    assert run.peak_memory_bytes == max(run.process_peak_bytes or 0, run.mlx_peak_bytes or 0)
    assert (run.mlx_peak_bytes or 0) > 0
    assert run.estimated_peak_bytes is not None
    assert 0.85 <= run.estimated_peak_bytes / (run.peak_memory_bytes or 1) <= 1.15
    assert len(run.model_sha256) == 64
    assert run.versions["mlx-lm"]
    folder = backend.runs.folder(run)
    names = {path.name for path in folder.iterdir()}
    assert {"spec.json", "memory.jsonl", "metrics.jsonl", "train.log", "lora_config.yaml"} <= names
    assert (folder / "adapters" / "adapters.safetensors").is_file()
    assert (folder / PLOT_FILE).stat().st_size > 10_000
    assert 0 < (run.longest_unwatched_seconds or 0) < 10
    assert backend.runs.latest("mlx") == run
    assert {progress.run_id for progress in told} == {run.run_id}
    assert backend.reservations.holders() == ()

    result = backend.evaluate(
        EvalRequest(model=spec.model, adapter_dir=str(folder / "adapters"), data_dir=spec.data_dir)
    )
    assert result.drop is not None
    assert result.drop > 0
    length = EvalRequest.model_fields["max_seq_length"].default
    expected = estimate_evaluation(
        read_shape(Path(spec.model)), max_seq_length=length, batch_size=EVALUATED
    ).total_bytes
    # Of rows up to that length; these are shorter.
    assert MB < (result.peak_memory_bytes or 0) <= expected
    (probe,) = backend.infer(spec.model, str(folder / "adapters"), ["Write add_1(x)."], 4)
    assert probe.generation.tokens == 4


def test_before_a_spec_that_can_not_fit_is_refused_without_starting_anything(
    backend: MlxBackend, spec: TrainSpec
) -> None:
    huge = SMALL.evolve(batch_size=4096, max_seq_length=2048, mask_prompt=False)
    run = backend.train(spec.evolve(params=huge, memory_limit_bytes=2_000 * MB))
    assert run.status is RunStatus.FAILED
    assert run.failure is not None
    assert (run.failure.kind, run.failure.layer) == (FailureKind.MEMORY_GATE, MemoryLayer.BEFORE)
    assert run.failure.needed_bytes == run.estimated_peak_bytes
    assert run.failure.limit_bytes == 2_000 * MB
    assert run.failure.hint
    folder = backend.runs.folder(run)
    assert backend.runs.read("mlx", run.run_id) == run
    assert not (folder / "train.log").exists()
    assert backend.runs.latest("mlx") is None


def test_a_limit_below_loading_says_so(backend: MlxBackend, spec: TrainSpec) -> None:
    run = backend.train(spec.evolve(memory_limit_bytes=50 * MB))
    assert run.failure is not None
    assert "loading the model alone" in run.failure.hint


def test_weights_that_are_not_numbers_never_get_into_a_checkpoint(
    backend: MlxBackend, spec: TrainSpec
) -> None:
    wild = spec.params.evolve(learning_rate=1e39, optimizer="sgd", save_every=1, iters=4)
    run = backend.train(spec.evolve(params=wild))
    assert run.status is RunStatus.FAILED
    assert run.failure is not None
    assert run.failure.kind is FailureKind.NOT_FINITE
    for path in backend.runs.folder(run).glob("checkpoints/*/adapters.safetensors"):
        tensors = load_file(path)
        assert all(np.isfinite(tensor).all() for tensor in tensors.values()), path


def test_after_a_measured_peak_over_the_limit_fails_a_run_that_ended_well(
    backend: MlxBackend, spec: TrainSpec
) -> None:
    run = backend.runs.create(spec)
    folder = backend.runs.folder(run)
    result = WorkerResult(
        status=RunStatus.FINISHED, iterations_done=6, optimizer_steps=6, trained_tokens=60,
        tokens_per_second=5.0, mlx_peak_bytes=501,
    )  # fmt: skip
    (folder / "result.json").write_text(result.model_dump_json())
    ended = Ended(exit_code=0, peak_bytes=100, seconds=1.0)
    judged, status, failure = judge(run, folder, ended, 500)
    assert status is RunStatus.FAILED
    assert failure is not None
    assert (failure.layer, failure.needed_bytes) == (MemoryLayer.AFTER, 501)
    assert judged.peak_memory_bytes == 501
    _, status, failure = judge(run, folder, ended, 501)
    assert (status, failure) == (RunStatus.FINISHED, None)


def test_a_crash_is_told_with_the_end_of_the_log(
    backend: MlxBackend, spec: TrainSpec, spoiled: pytest.MonkeyPatch
) -> None:
    spoiled.setenv("ABORT_AT_START", "1")
    run = backend.train(spec)
    assert run.failure is not None
    assert run.failure.kind is FailureKind.CRASH
    assert "signal 6" in run.failure.message
    assert "about to abort" in run.failure.message
    assert run.train_losses == ()
    assert run.tokens_per_second is None


def test_a_request_that_can_not_become_a_run_raises(
    backend: MlxBackend, spec: TrainSpec, tmp_path: Path
) -> None:
    with pytest.raises(OodatcaaError, match=r"no train\.jsonl and no valid\.jsonl"):
        backend.train(spec.evolve(data_dir=str(tmp_path)))
    with pytest.raises(OodatcaaError, match="no such folder"):
        backend.train(spec.evolve(model=str(tmp_path / "absent")))
    assert backend.runs.list().runs == ()
    assert backend.estimate(spec.evolve(data_dir="-")).total_bytes > 0


ASKED: dict[str, Callable[[MlxBackend, TrainSpec, Callable[[], bool]], object]] = {
    "a probe": lambda backend, spec, stop: backend.forecast(spec, should_stop=stop),
    "a timed step": lambda backend, spec, stop: backend.time_step(spec, should_stop=stop),
    "an evaluation": lambda backend, spec, stop: backend.evaluate(
        EvalRequest(model=spec.model, adapter_dir=None, data_dir=spec.data_dir), should_stop=stop
    ),
    "an answer": lambda backend, spec, stop: backend.infer(
        spec.model, None, ["Write add_1(x)."], 4, should_stop=stop
    ),
}


@pytest.mark.parametrize("what", ASKED)
def test_what_is_asked_to_stop_leaves_no_child_and_no_reservation(
    backend: MlxBackend, spec: TrainSpec, what: str
) -> None:
    polls: list[set[int]] = []

    def should_stop() -> bool:
        polls.append({p.pid for p in psutil.Process().children(recursive=True)})
        return len(polls) >= 2

    with pytest.raises(OodatcaaError, match=r"child\.stopped"):
        ASKED[what](backend, spec, should_stop)
    assert polls[-1]
    left = {p.pid for p in psutil.Process().children(recursive=True)}
    assert not left & polls[-1]
    assert backend.reservations.holders() == ()
    assert not list((backend.probes.folder).glob("*.json"))


OUTGROWING: dict[str, Callable[[MlxBackend, TrainSpec], object]] = {
    "a probe": lambda backend, spec: backend.forecast(spec).source,
    "an evaluation": lambda backend, spec: backend.evaluate(
        EvalRequest(
            model=spec.model, adapter_dir=None, data_dir=spec.data_dir,
            memory_limit_bytes=spec.memory_limit_bytes,
        )
    ).split,
    "an answer": lambda backend, spec: len(
        backend.infer(
            spec.model, None, ["Write add_1(x)."], 4, memory_limit_bytes=spec.memory_limit_bytes
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize(("what", "answer"), [*zip(OUTGROWING, ["probe", "test", 1], strict=True)])
def test_what_outgrows_its_share_is_stopped_and_waits_for_the_whole_limit(
    backend: MlxBackend,
    spec: TrainSpec,
    spoiled: pytest.MonkeyPatch,
    what: str,
    answer: object,
) -> None:
    limit = 2_000 * MB
    told: list[list[str]] = []
    with holder(backend.reservations.folder, 1_200 * MB, limit) as other:

        def on_wait(others: tuple[Reservation, ...]) -> None:
            told.append([one.label for one in others])
            end(other)

        backend.on_wait = on_wait
        spoiled.setenv("EAT_MEMORY", str(1_000 * MB))  # no estimate knows of it
        found = OUTGROWING[what](backend, spec.evolve(memory_limit_bytes=limit))
    assert told == [["somebody"]], "it had what was left first, and that was not enough"
    assert found == answer
    assert backend.reservations.holders() == ()


def test_a_probe_over_its_share_says_nothing_of_the_limit(
    backend: MlxBackend, spec: TrainSpec
) -> None:
    asked = Question(spec, Path(spec.model), backend.probes)
    with pytest.raises(RefusedError, match=r"reservation\.outgrown") as caught:
        asked.measure(64, allowance=lambda: 50 * MB)
    assert "others on this machine hold the rest of 16.00 GB" in caught.value.message
    assert not asked.known


def test_a_run_stopped_at_the_limit_has_its_memory_plotted(
    backend: MlxBackend, spec: TrainSpec, spoiled: pytest.MonkeyPatch
) -> None:
    spoiled.setenv("EAT_MEMORY", str(1_500 * MB))
    run = backend.train(spec.evolve(memory_limit_bytes=1_000 * MB))
    assert run.failure is not None
    assert (run.failure.kind, run.failure.layer) == (FailureKind.MEMORY_GATE, MemoryLayer.DURING)
    assert run.train_losses == ()
    folder = backend.runs.folder(run)
    series = [sample.tree_bytes for sample in read_samples(folder / "memory.jsonl")]
    assert max(series) > 50 * MB
    assert (folder / PLOT_FILE).stat().st_size > 10_000
    assert run.longest_unwatched_seconds
    assert backend.runs.read("mlx", run.run_id) == run


BUILDER = """
import sys
from pathlib import Path
from oodatcaa.domain.training import TrainSpec
from oodatcaa.training.backend import MlxBackend
from oodatcaa.training.backends import BACKENDS, make_backend
from oodatcaa.training.reservation import Reservations
from oodatcaa.training.runs import RunStore
class Folders:
    def resolve(self, model):
        return Path(model)
root = Path(sys.argv[1])
backend = MlxBackend(RunStore(root / "runs"), Folders(), reservations=Reservations(root / "ledger"))
print(backend.train(TrainSpec.model_validate_json(sys.argv[2])).model_dump_json())
"""


def builder(root: Path, spec: TrainSpec, code: str = BUILDER) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    arguments = [sys.executable, "-c", code, str(root), spec.model_dump_json()]
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True)


def test_kill_9_of_the_builder_leaves_no_child_and_another_goes_on(
    backend: MlxBackend, spec: TrainSpec, tmp_path: Path
) -> None:
    params = SMALL.evolve(iters=60, steps_per_eval=1000, save_every=5)
    first = builder(tmp_path, spec.evolve(params=params))
    parent = tmp_path / "runs" / "mlx"
    try:
        wait_until(lambda: list(parent.glob("*/checkpoints/0*/checkpoint.json")))
        (child_file,) = parent.glob("*/child.json")
        child = Owner.model_validate_json(child_file.read_text())
        assert is_alive(child.pid, child.create_time)
    finally:
        first.kill()
        first.wait()
        assert first.stdout is not None
        first.stdout.close()
    wait_until(lambda: not is_alive(child.pid, child.create_time))
    assert backend.reservations.holders() == ()
    (dead,) = backend.runs.recover(now=datetime.now(UTC))
    assert dead.failure is not None
    assert dead.failure.kind is FailureKind.KILLED
    assert dead.iterations_done >= 2
    assert (backend.runs.folder(dead) / PLOT_FILE).stat().st_size > 10_000
    found = backend.find_resumable(spec.evolve(params=params))
    assert found is not None
    again = backend.train(found.apply(spec.evolve(params=params)))
    assert again.status is RunStatus.FINISHED
    assert again.iterations_done == 60
    assert again.resumed_from == dead.run_id


@pytest.mark.slow
def test_a_full_disk_at_a_checkpoint_fails_the_run_and_says_so(
    spec: TrainSpec, tmp_path: Path
) -> None:
    # A file-size limit is the disk that refuses without needing a mount; the records are smaller.
    limited = (
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n" + BUILDER
    )
    process = builder(tmp_path, spec, limited)
    out, _ = process.communicate(timeout=120)
    assert '"kind":"disk_full"' in out
    (run,) = RunStore(tmp_path / "runs").list("mlx").runs
    assert run.status is RunStatus.FAILED
    assert run.failure is not None
    assert run.failure.kind is FailureKind.DISK_FULL


def test_probes_state_facts_and_refuse_to_pretend(backend: MlxBackend) -> None:
    mlx = backend.probe()
    assert mlx.importable
    assert mlx.version
    assert mlx.accelerator in ("cpu", "metal", "cuda")
    axolotl = make_backend("axolotl", backend.runs, backend.models)
    found = axolotl.probe()
    if not found.importable:
        assert found.problem is not None
        assert "axolotl" in found.problem
    spec = TrainSpec(backend="axolotl", model="m", data_dir="d", params=SMALL)
    with pytest.raises(OodatcaaError, match=r"backend\.unavailable") as caught:
        axolotl.train(spec)
    assert "pip install axolotl" in caught.value.hint
    with pytest.raises(OodatcaaError, match="no backend 'jax'"):
        make_backend("jax", backend.runs, backend.models)


def taught_by_runs(backend: MlxBackend) -> MlxBackend:
    return MlxBackend(
        backend.runs,
        backend.models,
        reservations=backend.reservations,
        probes=backend.probes,
        learns=True,
    )


def test_a_packed_run_answers_for_no_other(backend: MlxBackend, spec: TrainSpec) -> None:
    """How much its rows took is up to the examples that they held."""
    packed = spec.evolve(params=spec.params.evolve(rank=6, packing=True))
    teacher = taught_by_runs(backend)
    assert teacher.train(packed).status is RunStatus.FINISHED
    assert not teacher._ask(packed, Path(backend.models.resolve(spec.model))).known


def test_a_smaller_probe_does_not_answer_for_a_batch_that_can_be_measured(
    backend: MlxBackend, spec: TrainSpec, tmp_path: Path
) -> None:
    backend = MlxBackend(
        backend.runs,
        backend.models,
        reservations=backend.reservations,
        probes=ProbeCache(tmp_path / "probes"),
    )
    asked = Question(spec, Path(backend.models.resolve(spec.model)), backend.probes).size
    half = backend.forecast(spec, budget=asked.tokens // 2)
    assert "terms fitted to probes" in half.method
    assert backend.forecast(spec, budget=asked.tokens // 2) == half  # nothing is measured again

    found = backend.forecast(spec)

    assert f"measured in a probe of a few steps at {asked.batch} x {asked.length}" in found.method
    assert backend.forecast(spec) == found


@pytest.mark.slow
def test_a_run_made_for_measuring_answers_the_next_forecast(
    backend: MlxBackend, spec: TrainSpec
) -> None:
    before = backend.forecast(spec.evolve(params=spec.params.evolve(rank=3)))
    assert before.source == "probe"  # measured now: nothing was known of this family

    teacher = taught_by_runs(backend)
    run = teacher.train(spec.evolve(params=spec.params.evolve(rank=5)))
    assert run.status is RunStatus.FINISHED
    asked = backend.estimate(spec.evolve(params=spec.params.evolve(rank=5)))
    known = teacher._ask(
        spec.evolve(params=spec.params.evolve(rank=5)), Path(backend.models.resolve(spec.model))
    )
    assert asked.source != "probe"
    assert known.known
    assert known.answer().total_bytes >= (run.process_peak_bytes or 0)
