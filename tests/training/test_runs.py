"""The run store: nothing is overwritten, nothing is written twice, nothing is lost in silence."""

from __future__ import annotations

import hashlib
import multiprocessing
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import FailureKind, RunFailure, RunRecord, RunStatus, TrainSpec
from oodatcaa.errors import OodatcaaError, StateError
from oodatcaa.training.checkpoints import CheckpointNote, RunIdentity, refused, write_checkpoint
from oodatcaa.training.runs import OWNER_FILE, RUN_FILE, Owner, RunStore
from oodatcaa.training.watching import PLOT_FILE

NOW = datetime(2026, 1, 30, 12, 0, 0, tzinfo=UTC)
SPEC = TrainSpec(model="/models/tiny", data_dir="/data", params=QLoRA(rank=8, alpha=16))


def ended(run: RunRecord, status: RunStatus = RunStatus.FINISHED, after: int = 60) -> RunRecord:
    return run.evolve(status=status, finished_at=run.started_at + timedelta(seconds=after))


def test_run_json_holds_the_plans_keys_from_the_start(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    run = store.create(SPEC.evolve(git_sha="abc"), now=NOW)
    assert run.run_id == "2026-01-30_12-00-00"
    stored = store.read("mlx", run.run_id)
    assert stored == run
    keys = "started_at git_sha data_dir model lora_rank lora_alpha iters batch_size learning_rate"
    values = stored.model_dump()
    assert {key: values[key] for key in keys.split()} == {
        "started_at": NOW,
        "git_sha": "abc",
        "data_dir": "/data",
        "model": "/models/tiny",
        "lora_rank": 8,
        "lora_alpha": 16.0,
        "iters": 40,
        "batch_size": 4,
        "learning_rate": 3e-4,
    }
    assert (store.folder(run) / "spec.json").is_file()


def _create(root: str, names: object) -> None:
    names.put(RunStore(Path(root)).create(SPEC, now=NOW).run_id)  # type: ignore[attr-defined]


def test_many_processes_in_one_second_get_a_folder_each(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    names = context.Queue()
    workers = [context.Process(target=_create, args=(str(tmp_path), names)) for _ in range(12)]
    for worker in workers:
        worker.start()
    got = [names.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert len(set(got)) == 12
    listing = RunStore(tmp_path).list("mlx")
    assert listing.problems == ()
    assert [run.run_id for run in listing.runs][:2] == [
        "2026-01-30_12-00-00",
        "2026-01-30_12-00-00-2",
    ]
    assert [run.run_id for run in listing.runs][-1] == "2026-01-30_12-00-00-12"


def test_latest_names_the_newest_finished_run_only(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    first, second, third = (store.create(SPEC, now=NOW) for _ in range(3))
    assert store.latest("mlx") is None
    store.finish(ended(second, after=90))
    assert (tmp_path / "mlx" / "latest").readlink() == Path(second.run_id)
    store.finish(ended(third, RunStatus.FAILED, after=95))
    store.finish(ended(first, after=30))  # finished before `second` did, told later
    latest = store.latest("mlx")
    assert latest is not None
    assert latest.run_id == second.run_id


def test_a_real_folder_called_latest_is_never_replaced(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    run = store.create(SPEC, now=NOW)
    (tmp_path / "mlx" / "latest").mkdir()
    with pytest.raises(StateError, match="not a symlink"):
        store.finish(ended(run))
    assert (tmp_path / "mlx" / "latest").is_dir()


def test_a_run_that_is_over_is_never_written_again(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    run = store.create(SPEC, now=NOW)
    log = store.folder(run) / "train.log"
    log.write_text("one line\n")
    store.update(run.evolve(iterations_done=3))
    store.finish(ended(run))
    before = (store.folder(run) / RUN_FILE).read_bytes()
    for change in (store.update, store.finish):
        with pytest.raises(StateError, match="never written again"):
            change(ended(run, RunStatus.FAILED))
    assert (store.folder(run) / RUN_FILE).read_bytes() == before
    modes = {path.name: path.stat().st_mode & 0o222 for path in store.folder(run).iterdir()}
    assert set(modes.values()) == {0}, modes


def test_an_unreadable_run_is_reported_with_its_place_and_the_repair(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    good, bad, empty = (store.create(SPEC, now=NOW) for _ in range(3))
    (store.folder(bad) / RUN_FILE).write_text('{"started_at": 1')
    (store.folder(empty) / RUN_FILE).unlink()
    listing = store.list()
    assert [run.run_id for run in listing.runs] == [good.run_id]
    assert len(listing.problems) == 2
    assert all(RUN_FILE in problem for problem in listing.problems)
    with pytest.raises(StateError) as caught:
        store.read("mlx", bad.run_id)
    assert "mv " in caught.value.hint
    with pytest.raises(OodatcaaError, match="no run 'nope'"):
        store.read("mlx", "nope")


def test_a_disk_that_refuses_leaves_no_half_run(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from oodatcaa.training.runs import RunStore\n"
        "from oodatcaa.domain.training import QLoRA, TrainSpec\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))\n"
        "spec = TrainSpec(model='m', data_dir='d', params=QLoRA())\n"
        "RunStore(Path(sys.argv[1])).create(spec)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert "OSError" in done.stderr
    assert list((tmp_path / "mlx").iterdir()) == []


OWNER = """
import sys, time
from pathlib import Path
from oodatcaa.training.runs import RunStore
from oodatcaa.domain.training import TrainSpec
run = RunStore(Path(sys.argv[1])).create(TrainSpec.model_validate_json(sys.argv[2]))
print(run.run_id, flush=True)
time.sleep(100)
"""


def dead_run(root: Path, spec: TrainSpec) -> str:
    """A run whose owner was killed with SIGKILL; the id."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(root), spec.model_dump_json()],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    run_id = owner.stdout.readline().strip()
    assert RunStore(root).recover() == ()  # alive: hands off
    owner.kill()
    owner.wait()
    owner.stdout.close()
    return run_id


def test_a_dead_owners_run_becomes_failed_with_what_it_measured(tmp_path: Path) -> None:
    run_id = dead_run(tmp_path, SPEC)
    store = RunStore(tmp_path)
    folder = tmp_path / "mlx" / run_id
    (folder / "metrics.jsonl").write_text(
        '{"kind":"train","iteration":7,"loss":1.5,"learning_rate":0.1,"tokens":10,'
        '"tokens_per_second":5,"mlx_peak_bytes":70,"mlx_active_bytes":50,'
        '"at":"2026-01-30T12:00:00Z"}\n{"kind":"tra'
    )
    (folder / "memory.jsonl").write_text('{"at":"2026-01-30T12:00:00Z","tree_bytes":90}\n')
    checkpoint(folder, 5)
    (run,) = store.recover()
    assert run.status is RunStatus.FAILED
    assert run.failure is not None
    assert run.failure.kind is FailureKind.KILLED
    assert "iteration 5" in run.failure.message
    assert run_id in run.failure.hint
    assert (run.iterations_done, run.mlx_peak_bytes, run.peak_memory_bytes) == (7, 70, 90)
    assert store.read("mlx", run_id) == run
    assert (folder / PLOT_FILE).stat().st_size > 10_000
    assert store.recover() == ()


def test_a_dead_owners_run_that_measured_nothing_has_no_plot(tmp_path: Path) -> None:
    run_id = dead_run(tmp_path, SPEC)
    assert [run.run_id for run in RunStore(tmp_path).recover()] == [run_id]
    assert not (tmp_path / "mlx" / run_id / PLOT_FILE).exists()


def test_a_run_that_is_over_is_not_drawn_anew(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    run = store.create(SPEC)
    store.finish(ended(run))
    folder = store.folder(run)
    (folder / "memory.jsonl").write_text('{"at":"2026-01-30T12:00:00Z","tree_bytes":90}\n')
    with pytest.raises(StateError):
        store.finish(ended(run))
    assert not (folder / PLOT_FILE).exists()


def test_a_run_with_a_living_child_is_not_recovered_yet(tmp_path: Path) -> None:
    run_id = dead_run(tmp_path, SPEC)
    store = RunStore(tmp_path)
    child = subprocess.Popen(["sleep", "100"])
    store.set_child(store.read("mlx", run_id), child.pid)
    assert store.recover() == ()
    child.kill()
    child.wait()
    assert [run.run_id for run in store.recover()] == [run_id]


def test_a_run_of_another_host_is_left_alone(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    run = store.create(SPEC)
    elsewhere = Owner(host="elsewhere", pid=1, create_time=1.0)
    (store.folder(run) / OWNER_FILE).write_text(elsewhere.model_dump_json())
    assert store.recover() == ()


def checkpoint(folder: Path, iteration: int, *, state: bool = True) -> None:
    note = CheckpointNote(
        iteration=iteration,
        optimizer_step=iteration,
        random_key=0,
        identity=RunIdentity(facts={"BLAS": "MKL"}),
        tokens=1,
        seconds=1.0,
        at=NOW,
    )

    def write(place: Path) -> dict[str, str]:
        (place / "state.safetensors").write_bytes(b"s")
        return {"state.safetensors": hashlib.sha256(b"s").hexdigest()}

    place = write_checkpoint(folder / "checkpoints", note, write)
    if not state:
        (place / "state.safetensors").write_bytes(b"t")


def failed(store: RunStore, run: RunRecord, kind: FailureKind, message: str = "x") -> None:
    failure = RunFailure(kind=kind, message=message)
    store.finish(ended(run, RunStatus.FAILED).evolve(failure=failure))


def test_the_furthest_whole_checkpoint_of_the_same_training_is_found(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    assert store.find_resumable(SPEC) is None
    killed, gated, other, running = (store.create(SPEC, now=NOW) for _ in range(4))
    for run, iterations in ((killed, (5, 10)), (gated, (20,)), (other, (30,)), (running, (40,))):
        for iteration in iterations:
            checkpoint(store.folder(run), iteration)
    checkpoint(store.folder(killed), 15, state=False)  # the disk has changed it since
    failed(store, killed, FailureKind.KILLED)
    failed(store, gated, FailureKind.MEMORY_GATE)
    failed(store, other.evolve(params=QLoRA(rank=4)), FailureKind.CRASH)
    words: list[str] = []
    found = store.find_resumable(SPEC, say=words.append)
    assert found is not None
    assert len(words) == 1
    assert "0000015 is not whole: state.safetensors" in words[0]
    assert (found.run_id, found.iteration) == (killed.run_id, 10)
    again = store.create(found.apply(SPEC), now=NOW)
    assert again.resumed_from == killed.run_id
    assert found.apply(SPEC).start_iteration == 10
    assert store.find_resumable(SPEC.evolve(model="/models/other")) is None
    words.clear()
    assert store.find_resumable(SPEC, {"BLAS": "OpenBLAS"}, words.append) is None
    assert "BLAS: MKL then, OpenBLAS now" in words[-1]


def test_another_cadence_is_the_same_training(tmp_path: Path) -> None:
    """The worker takes such a checkpoint: looking for one must not be stricter."""
    store = RunStore(tmp_path)
    killed = store.create(SPEC, now=NOW)
    checkpoint(store.folder(killed), 5)
    failed(store, killed, FailureKind.KILLED)
    params = SPEC.params
    for other in (
        params.evolve(dense_weights=not params.dense_weights),
        params.evolve(save_every=params.save_every + 1),
        params.evolve(steps_per_eval=params.steps_per_eval + 1),
    ):
        found = store.find_resumable(SPEC.evolve(params=other))
        assert found is not None
        assert found.run_id == killed.run_id
    assert store.find_resumable(SPEC.evolve(params=params.evolve(seed=params.seed + 1))) is None


def test_how_often_is_validated_is_part_of_a_training_that_selects_by_it(tmp_path: Path) -> None:
    selecting = SPEC.evolve(params=SPEC.params.evolve(select_best=True))
    store = RunStore(tmp_path)
    killed = store.create(selecting, now=NOW)
    checkpoint(store.folder(killed), 5)
    failed(store, killed, FailureKind.KILLED)
    often = selecting.params.evolve(steps_per_eval=selecting.params.steps_per_eval + 1)
    assert store.find_resumable(selecting) is not None
    assert store.find_resumable(selecting.evolve(params=often)) is None


def test_a_checkpoint_that_a_worker_refused_is_not_tried_again(tmp_path: Path) -> None:
    """The worker knows facts that nobody knows beforehand: it would refuse for ever."""
    no = refused(("loss path: one then, two now",)).message
    store = RunStore(tmp_path)
    earlier, killed = store.create(SPEC, now=NOW), store.create(SPEC, now=NOW)
    for run, iteration in ((earlier, 5), (killed, 10)):
        checkpoint(store.folder(run), iteration)
        failed(store, run, FailureKind.KILLED)
    found = store.find_resumable(SPEC)
    assert found is not None
    assert found.run_id == killed.run_id
    failed(store, store.create(found.apply(SPEC), now=NOW), FailureKind.BAD_INPUT, no)
    words: list[str] = []
    found = store.find_resumable(SPEC, say=words.append)
    assert found is not None
    assert found.run_id == earlier.run_id
    assert len(words) == 1
    assert killed.run_id in words[0]
    failed(store, store.create(found.apply(SPEC), now=NOW), FailureKind.BAD_INPUT, no)
    assert store.find_resumable(SPEC) is None


def test_a_resumed_run_that_died_at_once_goes_on_from_the_same_checkpoint(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    killed = store.create(SPEC, now=NOW)
    checkpoint(store.folder(killed), 5)
    failed(store, killed, FailureKind.KILLED)
    found = store.last_checkpoint(killed)
    assert found is not None
    again = store.create(found.apply(SPEC), now=NOW)
    (store.folder(again) / "checkpoints" / ".new-xyz").mkdir(parents=True)
    failed(store, again, FailureKind.KILLED)
    more = store.last_checkpoint(again)
    assert more is not None
    assert (more.folder, more.iteration) == (found.folder, 5)
    assert not list((store.folder(again) / "checkpoints").iterdir())


def test_names_sort_by_time_and_number(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    for _ in range(11):
        store.create(SPEC, now=NOW)
    later = store.create(SPEC, now=NOW + timedelta(seconds=1))
    assert store.list("mlx").runs[-1] == later
    assert time.strptime(later.run_id, "%Y-%m-%d_%H-%M-%S")
