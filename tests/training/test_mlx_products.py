"""Products by numpy's OpenBLAS: the same values, only where they are the faster ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from adapted_model import adapted
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import GB, TrainSpec
from oodatcaa.training.examples import Example
from oodatcaa.training.identity import NUMPY_KERNELS, NUMPY_THREADS
from oodatcaa.training.mlx import blas, products, vector
from oodatcaa.training.mlx.batches import make_batch
from oodatcaa.training.mlx.cpu import on_cpu
from oodatcaa.training.mlx.loss import make_loss, split_head
from oodatcaa.training.mlx.parallel import divided_gradient
from oodatcaa.training.mlx.team import make_team
from oodatcaa.training.protocol import SPEC_FILE
from tiny_model import make_tiny_data, make_tiny_model

pytestmark = pytest.mark.skipif(not on_cpu(), reason="the measures are for MLX's CPU device")
has_openblas = "openblas" in str(np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"])


@pytest.fixture(params=["numpy", "MLX"])
def by_numpy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """As a process in which `preload` found that numpy's BLAS is the faster one, or did not."""
    if request.param == "numpy" and not has_openblas:
        pytest.skip("this numpy has another BLAS")
    monkeypatch.setattr(blas, "_numpy_kernels", "any" if request.param == "numpy" else None)
    monkeypatch.setattr(blas, "_threads", 1)
    return bool(request.param == "numpy")


def random(*shape: int, kind: mx.Dtype = mx.float32) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(sum(shape))).astype(kind)


@pytest.mark.parametrize("outputs", [5, 40_000])
def test_the_products_are_what_mlx_computes(by_numpy: bool, outputs: int) -> None:
    x, w, back = random(2, 20, 48), random(outputs, 48), random(40, outputs)
    assert products.by_numpy(x, w) is by_numpy
    assert (4 * 40 * outputs > vector.SMALL_BYTES) is (outputs == 40_000)

    found, other = products.transposed(x, w), products.numbers(back, w)

    assert found.shape == (2, 20, outputs)
    assert mx.allclose(found, x @ w.T, rtol=1e-4, atol=1e-4)
    assert np.allclose(other, back @ w, rtol=1e-3, atol=1e-2)


def test_what_is_not_contiguous_is_multiplied_as_it_is_meant(by_numpy: bool) -> None:
    del by_numpy
    x, w = random(20, 6, 48).swapaxes(0, 1)[:, ::2], random(48, 30).T

    assert mx.allclose(products.transposed(x, w), x @ w.T, rtol=1e-4, atol=1e-4)


def test_a_low_rank_part_is_added_to_the_product(by_numpy: bool) -> None:
    del by_numpy
    x, w, a, b = random(3, 8, 32), random(24, 32), random(32, 4), random(4, 24)

    y, low = products.adapted(products.transposed(x, w), x, a, b, 1.5)

    assert mx.allclose(low, 1.5 * (x @ a), rtol=1e-4, atol=1e-4)
    assert mx.allclose(y, x @ w.T + 1.5 * (x @ a) @ b, rtol=1e-4, atol=1e-3)


def test_half_precision_and_several_threads_are_left_to_mlx(
    by_numpy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w = random(4, 32), random(8, 32)
    half = w.astype(mx.bfloat16)

    assert not products.by_numpy(x, half)
    assert products.transposed(half, half).dtype == mx.bfloat16
    monkeypatch.setattr(blas, "_threads", 2)
    assert not products.by_numpy(x, w)
    assert by_numpy is (blas.numpy_kernels() is not None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def test_a_step_has_the_loss_and_gradients_of_mlx(
    by_numpy: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MKL_NUM_THREADS", "2")
    monkeypatch.setattr("oodatcaa.training.mlx.vector.FEW", 1)
    model: Any = adapted(folder, 1)
    split = split_head(model)
    model.train()
    batch = make_batch([Example(tuple(range(3, 40)), 5), Example(tuple(range(50, 99)), 1)], 64)
    team = make_team(model, 2)
    assert team is not None

    def step(loss: Any) -> tuple[float, dict[str, mx.array]]:
        (value, _), gradients = nn.value_and_grad(model, loss)(model, *batch)
        return value.item(), dict(tree_flatten(gradients))

    eager = divided_gradient(team, make_loss(split, at_once=True), None)
    x = random(4, 32)
    asked = team.each(lambda *_: products.by_numpy(x, x), [0, 1], model.trainable_parameters())
    ours, theirs = step(eager), step(make_loss(split))
    team.close()

    assert asked == [by_numpy, by_numpy]
    assert ours[0] == pytest.approx(theirs[0], rel=1e-4)
    for name, gradient in theirs[1].items():
        largest = float(mx.abs(gradient).max().item().real)
        assert mx.allclose(gradient, ours[1][name], rtol=1e-3, atol=2e-3 * largest), name


WORKERS = "import oodatcaa.training.mlx.worker, oodatcaa.training.mlx.probe"
"""What must leave numpy alone until it is ready."""


def kernels(before: str = "", **environment: str) -> list[str]:
    """What a new process multiplies with on one thread, and what it leaves in its environment."""
    code = (
        f"{before}\nimport os\nfrom oodatcaa.training.mlx import blas\nblas.preload()\n"
        f"print(blas.numpy_kernels(), os.environ.get({NUMPY_THREADS!r}), sep='\\n')"
    )
    left_out = (NUMPY_THREADS, NUMPY_KERNELS)
    inherited = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.splitlines()


def expected() -> bool:
    found = blas.find_blas()
    amd = blas.described_cpu().get("vendor_id") == "AuthenticAMD"
    on_the_cpu = blas.accelerator() == "cpu" and sys.platform.startswith("linux")
    return amd and on_the_cpu and found is not None and found.name == "MKL" and has_openblas


def test_a_worker_lets_numpy_multiply_on_amd_beside_mkl_and_nowhere_else() -> None:
    assert (kernels(WORKERS)[0] != "None") is expected()
    # What a person sets is part of what a run is: nothing else may be found there.
    assert kernels()[1] == "None"
    # It reads its settings when it is imported, and somebody may need its threads.
    assert kernels("import numpy") == ["None", "None"]
    assert kernels(OPENBLAS_NUM_THREADS="2") == ["None", "2"]
    if expected():
        assert kernels(OPENBLAS_CORETYPE="SkylakeX") == ["SkylakeX", "None"]


def test_a_checkpoint_says_whose_products_they_were(folder: Path, tmp_path: Path) -> None:
    data = make_tiny_data(tmp_path / "data")
    params = QLoRA(batch_size=2, iters=2, save_every=2, num_layers=1, max_seq_length=64)
    spec = TrainSpec(
        model=str(folder), data_dir=str(data), params=params, memory_limit_bytes=8 * GB
    )
    (tmp_path / SPEC_FILE).write_text(spec.model_dump_json(), encoding="utf-8")

    argv = [sys.executable, "-m", "oodatcaa.training.mlx.worker", str(tmp_path)]
    environment = {**os.environ, "MKL_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    subprocess.run(argv, env=environment, timeout=200, check=True, capture_output=True)

    (path,) = (tmp_path / "checkpoints").rglob("checkpoint.json")
    facts = json.loads(path.read_text(encoding="utf-8"))["identity"]["facts"]
    assert ("numpy's OpenBLAS" in facts["loss path"]) is expected()
    assert facts[NUMPY_THREADS] == os.environ.get(NUMPY_THREADS, "")
