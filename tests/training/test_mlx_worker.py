"""Real training runs on a tiny model: every option arrives, and a run ends only in known ways."""

from __future__ import annotations

import gc
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import psutil
import pytest
import yaml
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.lora import CONFIG_DEFAULTS
from pydantic import ValidationError

from oodatcaa.domain.memory import MemoryLayer
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import FailureKind, RunStatus, TrainProgress, TrainSpec
from oodatcaa.training.checkpoints import checkpoint_name, verify
from oodatcaa.training.mlx import setup
from oodatcaa.training.mlx.cpu import on_cpu
from oodatcaa.training.mlx.loss import make_loss, split_head
from oodatcaa.training.mlx.recompute import recompute
from oodatcaa.training.mlx.trainer import Run
from oodatcaa.training.protocol import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    ADAPTERS_DIR,
    CHECKPOINTS_DIR,
    EXIT_DESCRIBED,
    FAST_CPU,
    LORA_CONFIG_FILE,
    METRICS_FILE,
    PROGRESS_FILE,
    RESULT_FILE,
    SPEC_FILE,
    WorkerResult,
)
from tiny_model import make_tiny_data, make_tiny_model

BASE: dict[str, Any] = {
    "rank": 4,
    "alpha": 8.0,
    "num_layers": 2,
    "batch_size": 2,
    "iters": 6,
    "learning_rate": 0.01,
    "max_seq_length": 64,
    "steps_per_eval": 100,
    "val_batches": 1,
    "save_every": 100,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_data(tmp_path_factory.mktemp("data"), 12)


@pytest.fixture(autouse=True)
def own_signal_handlers() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


STARTED: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def no_worker_outlives_its_test() -> Iterator[None]:
    yield
    for process in STARTED:
        process.kill()
        process.wait()
    STARTED.clear()


Spec = Callable[..., TrainSpec]


@pytest.fixture
def spec(tiny: Path, data: Path) -> Spec:
    def make(changes: dict[str, Any] | None = None, **fields: Any) -> TrainSpec:
        values = {
            "model": str(tiny),
            "data_dir": str(data),
            "params": {**BASE, **(changes or {})},
            **fields,
        }
        return TrainSpec.model_validate(values)

    return make


def run(folder: Path, spec: TrainSpec) -> WorkerResult:
    folder.mkdir(parents=True, exist_ok=True)
    return Run(folder, spec, None).train()


def metrics(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    lines = (folder / METRICS_FILE).read_text().splitlines()
    return [m for m in map(json.loads, lines) if m["kind"] == kind]


def adapter(folder: Path) -> dict[str, mx.array]:
    loaded: Any = mx.load(str(folder / ADAPTERS_DIR / ADAPTER_FILE))
    return dict(loaded)


def same(one: dict[str, mx.array], other: dict[str, mx.array]) -> bool:
    return one.keys() == other.keys() and all(
        mx.array_equal(one[name], other[name]).item() for name in one
    )


def start_worker(folder: Path, spec: TrainSpec) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SPEC_FILE).write_text(spec.model_dump_json())
    command = [sys.executable, "-m", "oodatcaa.training.mlx.worker", str(folder)]
    with (folder / "train.log").open("wb") as log:
        STARTED.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
    return STARTED[-1]


def wait_for(what: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while not what():
        assert process.poll() is None, "the worker ended early"
        assert time.monotonic() < deadline, "the worker did not get there"
        time.sleep(0.01)


def read_result(folder: Path) -> WorkerResult:
    return WorkerResult.model_validate_json((folder / RESULT_FILE).read_bytes())


def test_a_run_leaves_everything_that_it_promises(tmp_path: Path, spec: Spec) -> None:
    process = start_worker(tmp_path, spec({"iters": 8, "save_every": 4, "steps_per_eval": 4}))
    assert process.wait(240) == 0

    result = read_result(tmp_path)
    assert result.status is RunStatus.FINISHED
    assert (result.iterations_done, result.optimizer_steps) == (8, 8)
    assert [p.iteration for p in result.train_losses] == list(range(1, 9))
    assert [p.iteration for p in result.valid_losses] == [0, 4, 8]
    assert result.train_losses[-1].loss < result.train_losses[0].loss
    assert result.mlx_peak_bytes
    assert result.tokens_per_second
    assert result.machine is not None
    assert result.versions["mlx-lm"]
    assert result.trained_tokens == sum(m["tokens"] for m in metrics(tmp_path))
    saved = sorted(p.name for p in (tmp_path / CHECKPOINTS_DIR).iterdir())
    assert saved == [checkpoint_name(4), checkpoint_name(8)]
    progress = TrainProgress.model_validate_json((tmp_path / PROGRESS_FILE).read_bytes())
    assert (progress.phase, progress.iteration, progress.iters) == ("finished", 8, 8)


def test_stock_mlx_lm_loads_the_adapter_and_generates(
    tmp_path: Path, spec: Spec, tiny: Path
) -> None:
    run(tmp_path, spec({"iters": 8}))
    command = [
        *(sys.executable, "-m", "mlx_lm", "generate", "--model", str(tiny)),
        *("--adapter-path", str(tmp_path / ADAPTERS_DIR), "--prompt", "Write add_3(x)."),
        *("--max-tokens", "4"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    assert "Generation: 4 tokens" in done.stdout


def test_rank_layers_keys_and_scale_decide_the_adapter(
    tmp_path: Path, spec: Spec, tiny: Path
) -> None:
    keys = ["self_attn.q_proj", "mlp.down_proj"]
    run(tmp_path, spec({"rank": 6, "alpha": 15.0, "num_layers": 1, "keys": keys, "iters": 1}))

    tensors = adapter(tmp_path)
    assert {n.rpartition(".")[0] for n in tensors} == {f"model.layers.2.{key}" for key in keys}
    assert all(6 in t.shape for t in tensors.values())
    loaded: Any = load(str(tiny), adapter_path=str(tmp_path / ADAPTERS_DIR))
    assert loaded[0].layers[2].self_attn.q_proj.scale == 15.0 / 6

    run(tmp_path / "all", spec({"num_layers": -1, "iters": 1}))
    assert {n.split(".")[2] for n in adapter(tmp_path / "all")} == {"0", "1", "2"}


CHANGES: list[dict[str, Any]] = [
    {"alpha": 80.0},
    {"dropout": 0.5},
    {"batch_size": 3},
    {"grad_accumulation_steps": 2},
    {"learning_rate": 0.001},
    {"schedule": "cosine"},
    {"schedule": "linear"},
    {"warmup_steps": 3},
    {"weight_decay": 0.5},
    {"mask_prompt": False},
    {"seed": 1},
    {"quantize_bits": 2},
    {"max_seq_length": 32},
]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, tiny: Path, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("reference")
    values = {"model": str(tiny), "data_dir": str(data), "params": BASE}
    run(folder, TrainSpec.model_validate(values))
    return folder


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: "-".join(map(str, *c.items())))
def test_changing_an_option_changes_the_result(
    change: dict[str, Any],
    tmp_path: Path,
    spec: Spec,
    reference: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OODATCAA_CACHE", str(tmp_path / "cache"))

    result = run(tmp_path / "run", spec(change))

    assert result.status is RunStatus.FINISHED, result.failure
    assert not same(adapter(tmp_path / "run"), adapter(reference))


def test_the_same_spec_gives_the_same_adapter(tmp_path: Path, spec: Spec, reference: Path) -> None:
    run(tmp_path, spec())
    assert same(adapter(tmp_path), adapter(reference))


def test_the_seed_decides_where_the_adapter_starts(tmp_path: Path, spec: Spec) -> None:
    starts = []
    for seed in (0, 1):
        # A learning rate that moves nothing: what is left is the random start.
        run(tmp_path / str(seed), spec({"seed": seed, "iters": 1, "learning_rate": 1e-20}))
        starts.append(adapter(tmp_path / str(seed)))
    assert not same(*starts)


def test_gradient_checkpointing_only_changes_memory(
    tmp_path: Path, spec: Spec, reference: Path
) -> None:
    import mlx_lm.models.qwen2 as qwen2

    block = qwen2.TransformerBlock
    stock = block.__call__
    try:
        run(tmp_path, spec({"grad_checkpoint": True}))
        assert block.__call__ is not stock
    finally:
        block.__call__ = stock
    assert [m["loss"] for m in metrics(tmp_path)] == pytest.approx(
        [m["loss"] for m in metrics(reference)], rel=1e-3
    )


@pytest.mark.parametrize(("fast", "at_once"), [("1", True), ("1", False), ("0", False)])
def test_any_number_of_checkpointed_blocks_gives_the_same_gradients(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, fast: str, at_once: bool
) -> None:
    import mlx.nn as nn
    import mlx_lm.models.qwen2 as qwen2

    monkeypatch.setenv(FAST_CPU, fast)
    eager = at_once and on_cpu()
    block = qwen2.TransformerBlock
    stock = block.__call__
    found: list[tuple[float, dict[str, mx.array], list[int]]] = []
    tokens = mx.random.randint(0, 300, (2, 24), key=mx.random.key(1))
    for params in (
        QLoRA(num_layers=2, rank=4),
        *(QLoRA(num_layers=2, rank=4, grad_checkpoint=True, grad_checkpoint_layers=n or None)
          for n in (1, 2, 0)),
    ):  # fmt: skip
        mx.random.seed(3)
        network, _ = setup.load_base(str(tiny))
        setup.attach_adapters(network, params)
        for name, tensor in setup.adapter_tensors(network).items():
            # lora_b starts at 0, and then nothing of lora_a has a gradient.
            network.load_weights([(name, tensor + 0.02)], strict=False)
        calls = [0] * len(network.layers)

        def counted(self: Any, *args: Any, **options: Any) -> Any:
            calls[[id(one) for one in network.layers].index(id(self))] += 1  # noqa: B023
            return stock(self, *args, **options)

        block.__call__ = counted
        try:
            if params.grad_checkpoint:
                recompute([network], params, at_once=eager)
            split = split_head(network)
            network.train()
            batch = (tokens, mx.arange(8), tokens.reshape(-1)[1:9], mx.ones(8))
            step = nn.value_and_grad(network, make_loss(split, at_once=eager))
            before = list(calls)
            (loss, _), gradient = step(network, *batch)
            mx.eval(loss, gradient)
            counts = [now - was for now, was in zip(calls, before, strict=True)]
            found.append((loss.item(), dict(tree_flatten(gradient)), counts))
        finally:
            block.__call__ = stock
    first, *others = found
    one = [1, 1, 2] if eager else [1, 2, 1]
    assert [counts for _, _, counts in found] == [[1, 1, 1], one, [1, 2, 2], [1, 2, 2]]
    for loss, gradient, _ in others:
        assert loss == pytest.approx(first[0], rel=1e-5)
        assert gradient.keys() == first[1].keys()
        for name, tensor in gradient.items():
            assert mx.allclose(tensor, first[1][name], rtol=1e-3, atol=1e-6).item(), name


@pytest.mark.skipif(shutil.which("g++") is None, reason="MLX compiles for the CPU with g++")
@pytest.mark.parametrize("packing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_step_that_mlx_compiles_trains_the_same(
    tmp_path: Path, spec: Spec, packing: bool
) -> None:
    """As on Metal and CUDA; the CPU's own measures switch compiling off."""
    options = {"max_seq_length": 128, "grad_accumulation_steps": 2, "packing": packing, "iters": 4}
    compiled, own = (losses_of(tmp_path / name, spec(options), name) for name in ("0", "1"))
    assert compiled == pytest.approx(own, rel=1e-2)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="MLX compiles for the CPU with g++")
def test_compiled_steps_drop_the_same_when_blocks_are_computed_again(
    tmp_path: Path, spec: Spec
) -> None:
    options = {"dropout": 0.5, "iters": 6, "learning_rate": 0.02}
    kept, again = (
        losses_of(tmp_path / str(again), spec({**options, "grad_checkpoint": again}), "0")
        for again in (False, True)
    )
    assert again == pytest.approx(kept, rel=1e-4)


def losses_of(folder: Path, spec: TrainSpec, fast_cpu: str) -> list[float]:
    """Of a worker's steps, in a process of its own."""
    folder.mkdir()
    (folder / SPEC_FILE).write_text(spec.model_dump_json())
    command = [sys.executable, "-m", "oodatcaa.training.mlx.worker", str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, FAST_CPU: fast_cpu},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return [m["loss"] for m in metrics(folder)]


def rates(folder: Path) -> list[float]:
    return [m["learning_rate"] for m in metrics(folder)]


def test_the_learning_rate_follows_schedule_and_warmup(tmp_path: Path, spec: Spec) -> None:
    run(tmp_path / "c", spec({"schedule": "cosine", "warmup_steps": 2}))
    found = rates(tmp_path / "c")
    assert found[:3] == pytest.approx([0.01 / 3, 0.02 / 3, 0.01], rel=1e-3)
    assert found == sorted(found[:3]) + sorted(found[3:], reverse=True)

    run(tmp_path / "l", spec({"schedule": "linear", "grad_accumulation_steps": 2}))
    expected = [0.01, 0.01, 0.01, 0.01 * 2 / 3, 0.01 * 2 / 3, 0.01 / 3]
    assert rates(tmp_path / "l")[1:] == pytest.approx(expected[1:], rel=1e-3)


def test_tokens_follow_batch_length_and_masking(tmp_path: Path, spec: Spec) -> None:
    def tokens(name: str, change: dict[str, Any]) -> int:
        run(tmp_path / name, spec({"iters": 1, **change}))
        return int(metrics(tmp_path / name)[0]["tokens"])

    masked = tokens("a", {})
    assert tokens("b", {"batch_size": 6}) > 2 * masked
    assert tokens("c", {"mask_prompt": False}) > masked
    assert tokens("d", {"mask_prompt": False, "max_seq_length": 32}) == 2 * 31


def test_cadences_of_reports_validation_and_checkpoints(tmp_path: Path, spec: Spec) -> None:
    cadence = {"steps_per_report": 2, "steps_per_eval": 3, "save_every": 2, "iters": 7}
    cadence["keep_checkpoints"] = 3
    run(tmp_path, spec({**cadence, "grad_accumulation_steps": 3}))

    assert [m["iteration"] for m in metrics(tmp_path)] == [2, 4, 6, 7]
    assert [m["iteration"] for m in metrics(tmp_path, "valid")] == [0, 3, 6, 7]
    saved = sorted(p.name for p in (tmp_path / CHECKPOINTS_DIR).iterdir())
    # Only a finished optimizer step can be resumed exactly.
    assert saved == [checkpoint_name(3), checkpoint_name(6), checkpoint_name(7)]


def test_val_batches_limits_the_validation(tmp_path: Path, spec: Spec) -> None:
    losses = []
    for wanted in (1, -1):
        folder = tmp_path / str(wanted)
        run(folder, spec({"iters": 1, "val_batches": wanted}))
        losses.append(metrics(folder, "valid")[0]["loss"])
    assert losses[0] != losses[1]


def test_lora_config_holds_every_option_under_mlx_lms_names(tmp_path: Path, spec: Spec) -> None:
    wanted = spec(
        {
            **{"rank": 5, "alpha": 20.0, "dropout": 0.1, "keys": ["mlp.up_proj"], "seed": 3},
            **{"grad_accumulation_steps": 2, "schedule": "cosine", "warmup_steps": 1},
            **{"weight_decay": 0.2, "grad_checkpoint": False, "steps_per_report": 2},
        }
    )
    run(tmp_path, wanted)
    config = yaml.safe_load((tmp_path / LORA_CONFIG_FILE).read_text())

    # The command line swallows unknown keys without a word.
    assert config.keys() <= CONFIG_DEFAULTS.keys()
    lora = {"rank": 5, "scale": 4.0, "dropout": 0.1, "keys": ["mlp.up_proj"]}
    assert config["lora_parameters"] == lora
    optimizer = {"adamw": {"weight_decay": 0.2, "bias_correction": True}}
    assert (config["optimizer"], config["optimizer_config"]) == ("adamw", optimizer)
    schedule = {"name": "cosine_decay", "arguments": [0.01, 2], "warmup": 1, "warmup_init": 0.005}
    assert config["lr_schedule"] == schedule
    for name in ("num_layers", "batch_size", "iters", "max_seq_length", "seed", "mask_prompt"):
        assert config[name] == getattr(wanted.params, name)
    for name in ("val_batches", "learning_rate", "steps_per_report", "steps_per_eval"):
        assert config[name] == getattr(wanted.params, name)
    for name in ("save_every", "grad_checkpoint", "grad_accumulation_steps"):
        assert config[name] == getattr(wanted.params, name)
    stored = json.loads((tmp_path / ADAPTERS_DIR / ADAPTER_CONFIG_FILE).read_text())
    assert stored == config


def test_mlx_lms_command_line_takes_the_config(tmp_path: Path, spec: Spec) -> None:
    run(tmp_path, spec({"iters": 2, "schedule": "linear", "warmup_steps": 1}))
    (tmp_path / ADAPTERS_DIR / ADAPTER_FILE).unlink()
    command = [sys.executable, "-m", "mlx_lm", "lora", "-c", str(tmp_path / LORA_CONFIG_FILE)]
    env = {**os.environ, "MLX_DISABLE_COMPILE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert adapter(tmp_path)


def resume(folder: Path, spec: Spec, options: dict[str, Any], point: Path) -> WorkerResult:
    start = int(point.name)
    return run(folder, spec(options, resume_from=str(point), start_iteration=start))


@pytest.fixture
def stock_blocks() -> Iterator[None]:
    """The class of the tiny model's blocks is as it was when the test has ended."""
    import mlx_lm.models.qwen2 as qwen2

    stock = qwen2.TransformerBlock.__call__
    yield
    qwen2.TransformerBlock.__call__ = stock


@pytest.mark.usefixtures("stock_blocks")
@pytest.mark.parametrize(
    "how",
    [
        {"dropout": 0.3},
        {"dropout": 0.3, "grad_checkpoint": True, "batch_size": 2, "fine_tune_type": "dora"},
        {"grad_checkpoint": True, "batch_size": 2},
        {"grad_checkpoint": True},
        {"fine_tune_type": "full", "batch_size": 2, "grad_checkpoint": True, "optimizer": "adam"},
    ],
    ids=[
        *("dropout", "dropped rows of dora, blocks again", "rows and blocks again", "blocks again"),
        "all weights",
    ],
)
def test_a_resumed_run_ends_with_the_very_same_adapter(
    tmp_path: Path, spec: Spec, how: dict[str, Any]
) -> None:
    if how.get("fine_tune_type") == "full":  # quantised weights can not be trained
        spec = partial(spec, model=str(make_tiny_model(tmp_path / "plain", quantized=False)))
    # Accumulation and a schedule, too: random state, moments and step have to survive.
    options = {
        **{"iters": 12, "save_every": 4, "grad_accumulation_steps": 2, "batch_size": 1, **how},
        **{"schedule": "cosine", "warmup_steps": 1},
    }
    run(tmp_path / "whole", spec(options))
    for start in (8, 12):
        point = tmp_path / "whole" / CHECKPOINTS_DIR / checkpoint_name(start)
        resumed = resume(tmp_path / str(start), spec, options, point)
        assert resumed.status is RunStatus.FINISHED, resumed.failure
        assert resumed.iterations_done == 12
        assert same(adapter(tmp_path / str(start)), adapter(tmp_path / "whole"))


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, spec: Spec) -> None:
    run(tmp_path / "a", spec({"save_every": 2}))
    point = tmp_path / "a" / CHECKPOINTS_DIR / checkpoint_name(4)

    result = run(tmp_path / "b", spec({"rank": 8}, resume_from=str(point)))

    assert result.failure is not None
    assert result.failure.kind is FailureKind.BAD_INPUT
    assert "params.rank: 4 then, 8 now" in result.failure.message
    assert "not the same tensor" in result.failure.message


def test_sigterm_saves_and_stops(tmp_path: Path, spec: Spec) -> None:
    process = start_worker(tmp_path, spec({"iters": 5000, "grad_accumulation_steps": 2}))
    wait_for(lambda: (tmp_path / METRICS_FILE).exists() and len(metrics(tmp_path)) > 3, process)
    process.send_signal(signal.SIGTERM)

    assert process.wait(240) == EXIT_DESCRIBED
    result = read_result(tmp_path)
    assert result.status is RunStatus.STOPPED
    assert result.failure is not None
    assert result.failure.kind is FailureKind.INTERRUPTED
    even = result.iterations_done - result.iterations_done % 2
    assert (tmp_path / CHECKPOINTS_DIR / checkpoint_name(even)).exists()


def test_a_stop_after_the_last_iteration_is_a_finished_run(tmp_path: Path, spec: Spec) -> None:
    whole = Run(tmp_path, spec({"iters": 1}), None)
    whole._on_sigterm()

    assert whole.train().status is RunStatus.FINISHED
    assert adapter(tmp_path)


def test_mlx_memory_over_the_limit_stops_the_run(tmp_path: Path, spec: Spec) -> None:
    run(tmp_path / "probe", spec({"iters": 1}))
    gc.collect()  # what went later would be room for the steps
    for name, limit in (("load", 1000), ("step", 400_000 + mx.get_active_memory())):
        mx.reset_peak_memory()
        folder = tmp_path / name
        result = run(folder, spec(memory_limit_bytes=limit))
        assert result.status is RunStatus.FAILED
        assert result.failure is not None
        assert result.failure.kind is FailureKind.MEMORY_GATE
        assert result.failure.layer is MemoryLayer.DURING
        assert result.failure.limit_bytes == limit
        assert (result.failure.needed_bytes or 0) > limit
        assert not (folder / ADAPTERS_DIR / ADAPTER_FILE).exists()


def test_the_largest_seed_is_one_that_a_run_can_take(tmp_path: Path, spec: Spec) -> None:
    assert run(tmp_path, spec({"iters": 1, "seed": 2**32 - 1})).status is RunStatus.FINISHED
    with pytest.raises(ValidationError, match="less than"):
        QLoRA(seed=2**32)


def test_a_loss_that_explodes_is_a_failure_with_a_checkpoint_left(
    tmp_path: Path, spec: Spec
) -> None:
    process = start_worker(tmp_path, spec({"learning_rate": 1e30, "iters": 20, "save_every": 1}))

    assert process.wait(240) == EXIT_DESCRIBED
    result = read_result(tmp_path)
    assert result.failure is not None
    assert result.failure.kind is FailureKind.NOT_FINITE
    assert all(math.isfinite(p.loss) for p in result.train_losses)
    assert not (tmp_path / ADAPTERS_DIR / ADAPTER_FILE).exists()


def test_prompts_as_long_as_the_sequence_never_reach_the_adapter(
    tmp_path: Path, spec: Spec, data: Path
) -> None:
    lines = (data / "train.jsonl").read_text().splitlines()
    long = {"role": "user", "content": "y" * 200}
    answer = json.loads(lines[0])["messages"][1]
    bad = json.dumps({"messages": [long, answer]})
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("\n".join([*lines, bad, bad]))

    result = run(tmp_path / "run", spec(data_dir=str(tmp_path / "data")))
    assert result.status is RunStatus.FINISHED
    assert sum(result.dropped_examples.values()) == 2
    assert all(mx.isfinite(t).all().item() for t in adapter(tmp_path / "run").values())

    (tmp_path / "data" / "train.jsonl").write_text(bad)
    nothing = run(tmp_path / "none", spec(data_dir=str(tmp_path / "data")))
    assert nothing.failure is not None
    assert nothing.failure.kind is FailureKind.BAD_INPUT


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path, spec: Spec) -> None:
    if not hasattr(psutil.Process, "rlimit"):
        pytest.skip("file size limits of another process can be set on Linux only")
    process = start_worker(tmp_path, spec({"iters": 5000, "save_every": 5, "rank": 16}))
    checkpoints = tmp_path / CHECKPOINTS_DIR
    wait_for(lambda: bool(list(checkpoints.glob("0*"))), process)
    # The kernel's EFBIG takes the same way as ENOSPC, without a file system of our own to fill.
    psutil.Process(process.pid).rlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    assert process.wait(240) == EXIT_DESCRIBED
    result = read_result(tmp_path)
    assert result.failure is not None
    assert result.failure.kind is FailureKind.DISK_FULL
    assert "resume" in result.failure.hint
    last = max(checkpoints.glob("0*"))
    assert verify(last).iteration == int(last.name)
    assert all(p.name.isdigit() for p in checkpoints.iterdir())


def test_parameters_that_do_not_fit_are_all_named(tmp_path: Path, spec: Spec) -> None:
    result = run(tmp_path, spec({"num_layers": 99, "keys": ["mlp.up_proj", "no.such", "nor.this"]}))

    assert result.failure is not None
    assert result.failure.kind is FailureKind.BAD_INPUT
    for part in ("99", "no.such", "nor.this", "self_attn.q_proj"):
        assert part in result.failure.message


def test_only_the_adapter_is_trained(tmp_path: Path, spec: Spec) -> None:
    run(tmp_path, spec({"iters": 1}))
    assert {n.rpartition(".")[2] for n in adapter(tmp_path)} == {"lora_a", "lora_b"}
    assert len(tree_flatten(adapter(tmp_path))) == 2 * 2 * 7
