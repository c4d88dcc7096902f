"""A run that is killed, stopped or put to sleep ends with the bits of one that never was."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import FailureKind, RunStatus, TrainSpec
from oodatcaa.errors import OodatcaaError
from oodatcaa.training.checkpoints import Selection, checkpoint_name, newest_whole, verify
from oodatcaa.training.identity import cores, pinned, usable_cores
from oodatcaa.training.mlx.blas import Blas
from oodatcaa.training.mlx.trainer import Run
from oodatcaa.training.protocol import (
    ADAPTER_FILE,
    ADAPTERS_DIR,
    CHECKPOINTS_DIR,
    EXIT_DESCRIBED,
    METRICS_FILE,
    RESULT_FILE,
    SPEC_FILE,
    WorkerResult,
)
from oodatcaa.training.waking import SleepWatch
from tiny_model import make_tiny_data, make_tiny_model

HARD: dict[str, Any] = {
    **{"rank": 4, "alpha": 8.0, "num_layers": 2, "batch_size": 2, "max_seq_length": 64},
    **{"iters": 14, "learning_rate": 0.01, "schedule": "cosine", "warmup_steps": 2},
    # Random state, an accumulated gradient, a half report interval: all of it has to survive.
    **{"dropout": 0.3, "grad_accumulation_steps": 2, "grad_checkpoint": True},
    **{"steps_per_report": 3, "steps_per_eval": 5, "val_batches": 2, "save_every": 4},
}
PLAIN: dict[str, Any] = {
    **{"rank": 4, "num_layers": 1, "batch_size": 2, "max_seq_length": 64, "iters": 6},
    **{"learning_rate": 0.01, "steps_per_eval": 2, "val_batches": -1, "save_every": 2},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_data(tmp_path_factory.mktemp("data"), 12)


@pytest.fixture(autouse=True)
def own_signal_handlers() -> Iterator[None]:
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGCONT)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


Spec = Callable[..., TrainSpec]


@pytest.fixture
def spec(tiny: Path, data: Path) -> Spec:
    def make(params: dict[str, Any], **fields: Any) -> TrainSpec:
        values = {"model": str(tiny), "data_dir": str(data), "params": params, **fields}
        return TrainSpec.model_validate(values)

    return make


@pytest.fixture
def start(request: pytest.FixtureRequest) -> Callable[..., subprocess.Popen[bytes]]:
    def worker(folder: Path, spec: TrainSpec, **extra: str) -> subprocess.Popen[bytes]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SPEC_FILE).write_text(spec.model_dump_json())
        command = [sys.executable, "-m", "oodatcaa.training.mlx.worker", str(folder)]
        # One thread: on a busy machine two of them wait for each other at every small product.
        env = {**os.environ, **pinned({**os.environ, "MKL_NUM_THREADS": "1"}), **extra}
        with (folder / "train.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)

        def end() -> None:
            process.kill()
            process.wait()

        request.addfinalizer(end)
        return process

    return worker


def wait_for(what: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 500
    while not what():
        assert process.poll() is None, "the worker ended early"
        assert time.monotonic() < deadline, "the worker did not get there"
        time.sleep(0.01)


def figures(folder: Path) -> list[Any]:
    """What metrics.jsonl says of the training itself: all but times and memory."""
    lines = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    names = ("kind", "iteration", "loss", "learning_rate", "tokens")
    return [[line.get(name) for name in names] for line in lines]


def adapter(folder: Path) -> bytes:
    return (folder / ADAPTERS_DIR / ADAPTER_FILE).read_bytes()


def going_on(spec: TrainSpec, folder: Path) -> TrainSpec:
    parent = folder / CHECKPOINTS_DIR
    note, _ = newest_whole(parent)
    assert note is not None
    place = parent / checkpoint_name(note.iteration)
    return spec.evolve(resume_from=str(place), start_iteration=note.iteration)


@pytest.mark.timeout(900)
def test_killed_twice_and_resumed_twice_it_ends_with_the_same_bits(
    tmp_path: Path, spec: Spec, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    wanted = spec(HARD)
    whole = [start(tmp_path / name, wanted) for name in ("one", "other")]
    assert [process.wait(500) for process in whole] == [0, 0]
    # Without this nothing else would mean anything.
    assert adapter(tmp_path / "one") == adapter(tmp_path / "other")
    assert figures(tmp_path / "one") == figures(tmp_path / "other")

    # In the middle of the second checkpoint: written, not yet renamed.
    first = start(tmp_path / "a", wanted, OODATCAA_CRASH_AT="checkpoint.note.after_rename:2")
    assert first.wait(500) == -signal.SIGKILL
    assert list((tmp_path / "a" / CHECKPOINTS_DIR).glob(".new-*"))
    second = start(tmp_path / "b", going_on(wanted, tmp_path / "a"))
    # Between a metrics line and the next checkpoint.
    wait_for(
        lambda: (tmp_path / "b" / METRICS_FILE).exists() and len(figures(tmp_path / "b")) > 3,
        second,
    )
    second.send_signal(signal.SIGKILL)
    second.wait()
    third = start(tmp_path / "c", going_on(wanted, tmp_path / "b"))
    assert third.wait(500) == 0

    assert adapter(tmp_path / "c") == adapter(tmp_path / "one")
    assert figures(tmp_path / "c") == figures(tmp_path / "one")
    trained = [line[1] for line in figures(tmp_path / "c") if line[0] == "train"]
    assert trained == [3, 6, 9, 12, 14]


def test_stopped_continued_and_ended_by_sigterm_it_leaves_checkpoints(
    tmp_path: Path, spec: Spec, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    never = {**PLAIN, "iters": 100_000, "save_every": 100_000, "steps_per_eval": 100_000}
    process = start(tmp_path, spec(never))
    saved = tmp_path / CHECKPOINTS_DIR
    wait_for((tmp_path / METRICS_FILE).exists, process)
    wait_for(lambda: len(figures(tmp_path)) > 3, process)
    assert not saved.exists()

    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGCONT)
    wait_for(lambda: saved.exists() and any(p.name.isdigit() for p in saved.iterdir()), process)
    woken = newest_whole(saved)[0]
    lines = len(figures(tmp_path))
    wait_for(lambda: len(figures(tmp_path)) > lines + 1, process)
    process.send_signal(signal.SIGTERM)

    assert process.wait(500) == EXIT_DESCRIBED
    result = WorkerResult.model_validate_json((tmp_path / RESULT_FILE).read_bytes())
    assert result.status is RunStatus.STOPPED
    last = newest_whole(saved)[0]
    assert woken is not None
    assert last is not None
    assert woken.iteration < last.iteration == result.iterations_done


def test_a_machine_that_slept_is_noticed_once() -> None:
    watch = SleepWatch(100.0)
    assert [watch.slept(now) for now in (100.1, 100.0, 3700.0, 3700.2)] == [
        *(False, False, True, False)
    ]
    assert not SleepWatch().slept()


def run(folder: Path, spec: TrainSpec, blas: Blas | None = None) -> WorkerResult:
    folder.mkdir(parents=True, exist_ok=True)
    return Run(folder, spec, blas).train()


def test_whatever_changed_is_named_and_refused(
    tmp_path: Path, spec: Spec, tiny: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = spec(PLAIN)
    run(tmp_path / "first", wanted)
    point = going_on(wanted, tmp_path / "first")

    def refusal(name: str, spec: TrainSpec, blas: Blas | None = None) -> str:
        result = run(tmp_path / name, spec, blas)
        assert result.failure is not None
        assert result.failure.kind is FailureKind.BAD_INPUT
        return result.failure.message

    other = shutil.copytree(data, tmp_path / "data")
    with (other / "train.jsonl").open("a") as file:
        file.write("\n")
    assert "train.jsonl: " in refusal("data", point.evolve(data_dir=str(other)))
    twin = shutil.copytree(tiny, tmp_path / "twin")
    with (twin / "config.json").open("a") as file:
        file.write(" ")
    assert "model: " in refusal("model", point.evolve(model=str(twin)))
    blas = Blas(name="OpenBLAS", path="/lib/libopenblas.so.0")
    words = refusal("blas", point, blas)
    assert "BLAS: none then, OpenBLAS (libopenblas.so.0) now" in words
    changed = point.evolve(params=point.params.evolve(learning_rate=0.02, seed=1))
    words = refusal("params", changed)
    assert "params.learning_rate: 0.01 then, 0.02 now" in words
    assert "params.seed: 0 then, 1 now" in words
    assert "it is of iteration 6, not 5" in refusal("start", point.evolve(start_iteration=5))
    monkeypatch.setenv("OODATCAA_FAST_CPU", "0")
    assert "loss path: " in refusal("path", point)
    monkeypatch.delenv("OODATCAA_FAST_CPU")
    # How often something is reported or saved is not what a run is.
    often = point.evolve(params=point.params.evolve(save_every=1, steps_per_report=2))
    assert run(tmp_path / "cadence", often).status is RunStatus.FINISHED


@pytest.mark.parametrize("name", ["state.safetensors", "metrics.jsonl", "checkpoint.json"])
def test_a_torn_checkpoint_is_skipped_with_a_word(tmp_path: Path, spec: Spec, name: str) -> None:
    run(tmp_path, spec(PLAIN))
    parent = tmp_path / CHECKPOINTS_DIR
    assert sorted(p.name for p in parent.iterdir()) == ["0000004", "0000006"]
    torn = parent / "0000006" / name
    raw = bytearray(torn.read_bytes())
    raw[len(raw) // 2] ^= 1
    torn.write_bytes(raw)

    note, words = newest_whole(parent)

    assert note is not None
    assert note.iteration == 4
    assert len(words) == 1
    assert f"0000006 is not whole: {name}" in words[0]
    with pytest.raises(OodatcaaError, match=name):
        verify(parent / "0000006")


@pytest.mark.skipif(not Path("/proc/self/mem").is_file(), reason="a file that can not be read")
def test_a_checkpoint_that_can_not_be_read_is_skipped_with_a_word(
    tmp_path: Path, spec: Spec
) -> None:
    run(tmp_path, spec(PLAIN))
    parent = tmp_path / CHECKPOINTS_DIR
    state = parent / "0000006" / "state.safetensors"
    state.unlink()
    state.symlink_to("/proc/self/mem")  # its first byte is nobody's: EIO, as of a damaged disk

    note, words = newest_whole(parent)

    assert note is not None
    assert note.iteration == 4
    (word,) = words
    assert "0000006 is not whole: state.safetensors can not be read (Input/output error)" in word


def test_the_best_weights_are_kept_selected_and_survive_a_resume(
    tmp_path: Path, spec: Spec
) -> None:
    # A learning rate at which the validation loss goes down, then up again.
    wild = {**PLAIN, "iters": 40, "learning_rate": 0.12, "select_best": True, "save_every": 7}
    wild |= {"early_stopping_patience": 4, "keep_checkpoints": 1}
    whole = run(tmp_path / "whole", spec(wild))
    assert whole.status is RunStatus.FINISHED, whole.failure
    assert whole.stopped_early
    losses = {p.iteration: p.loss for p in whole.valid_losses if p.iteration}
    best = min(losses, key=lambda iteration: losses[iteration])
    assert whole.adapter_iteration == best
    assert whole.iterations_done == best + 8 < 40
    parent = tmp_path / "whole" / CHECKPOINTS_DIR
    kept = sorted(int(p.name) for p in parent.iterdir())
    assert best in kept
    assert len(kept) <= 2
    chosen = parent / checkpoint_name(best) / ADAPTER_FILE
    assert adapter(tmp_path / "whole") == chosen.read_bytes()

    on = going_on(spec(wild), tmp_path / "whole")
    again = run(tmp_path / "again", on)
    assert again.status is RunStatus.FINISHED, again.failure
    assert again.adapter_iteration == best
    assert again.stopped_early == whole.stopped_early
    assert adapter(tmp_path / "again") == adapter(tmp_path / "whole")
    assert figures(tmp_path / "again") == figures(tmp_path / "whole")


def test_better_means_by_more_than_the_delta() -> None:
    found = Selection()
    seen = []
    for iteration, loss in ((2, 1.0), (4, 0.95), (6, 0.85), (8, 0.8), (10, 2.0)):
        found = found.after(iteration, iteration, loss, 0.1)
        seen.append((found.iteration, found.not_better))
    assert seen == [(2, 0), (2, 1), (6, 0), (6, 1), (6, 2)]


def test_nothing_to_select_by_is_said_before_training(tmp_path: Path, spec: Spec) -> None:
    data = make_tiny_data(tmp_path / "data", 6)
    (data / "valid.jsonl").unlink()
    result = run(tmp_path / "run", spec({**PLAIN, "select_best": True}, data_dir=str(data)))
    assert result.failure is not None
    assert "valid.jsonl" in result.failure.message
    assert result.iterations_done == 0


def test_selecting_without_a_look_is_refused() -> None:
    with pytest.raises(ValidationError, match="val_batches"):
        QLoRA(select_best=True, val_batches=0)
    with pytest.raises(ValidationError, match="val_batches"):
        QLoRA(early_stopping_patience=2, val_batches=0)


@pytest.mark.parametrize("told", ["", "abc", "-3", "2,1", "0", "²"])
def test_a_number_of_threads_that_is_none_means_every_core(
    told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    every = cores()
    monkeypatch.setenv("MKL_NUM_THREADS", told)
    assert cores() == every


def test_more_threads_than_cores_are_told_in_the_log_and_stay_as_they_are(
    tmp_path: Path, spec: Spec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = usable_cores()
    told = pinned({"MKL_NUM_THREADS": str(there), "OMP_NUM_THREADS": str(there + 9)})
    assert told["OMP_NUM_THREADS"] == str(there + 9)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    run(tmp_path / "over", spec(PLAIN))
    said = capsys.readouterr().out
    assert f"warning: OMP_NUM_THREADS={there + 9}, but this process may use {there} core" in said
    assert "MKL_NUM_THREADS" not in said
    monkeypatch.setenv("OMP_NUM_THREADS", str(there))
    run(tmp_path / "even", spec(PLAIN))
    assert "warning" not in capsys.readouterr().out
