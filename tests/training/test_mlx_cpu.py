"""The CPU measures change speed only: same losses, same gradients, and only where they belong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm import load
from mlx_lm.tuner.utils import linear_to_lora_layers

from oodatcaa.training.examples import Example
from oodatcaa.training.mlx import blas
from oodatcaa.training.mlx.batches import make_batch
from oodatcaa.training.mlx.cpu import DenseProductLinear, on_cpu, speed_up
from oodatcaa.training.mlx.loss import make_loss, split_head
from tiny_model import make_tiny_model

cpu_only = pytest.mark.skipif(not on_cpu(), reason="the measures are for MLX's CPU device")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def loss_and_gradients(folder: Path, *, fast: bool) -> tuple[float, dict[str, mx.array]]:
    loaded: Any = load(str(folder))
    model = loaded[0]
    model.freeze()
    if fast:
        assert speed_up(model)
    mx.random.seed(7)
    linear_to_lora_layers(model, 2, {"rank": 4, "scale": 2.0, "dropout": 0.0})
    # lora_b starts at zero, which would hide every gradient of lora_a.
    for name, module in model.named_modules():
        if "lora_b" in module:
            module.lora_b = mx.random.normal(module.lora_b.shape, key=mx.random.key(len(name)))
    examples = [Example(tuple(range(3, 40)), 10), Example(tuple(range(60, 90)), 1)]
    step = nn.value_and_grad(model, make_loss(split_head(model)))
    (value, _), gradients = step(model, *make_batch(examples, 128))
    return value.item(), dict(tree_flatten(gradients))


@cpu_only
def test_losses_and_gradients_equal_the_stock_path(tiny: Path) -> None:
    stock_loss, stock = loss_and_gradients(tiny, fast=False)
    fast_loss, fast = loss_and_gradients(tiny, fast=True)

    assert fast_loss == pytest.approx(stock_loss, rel=1e-4)
    assert stock.keys() == fast.keys()
    for name, gradient in stock.items():
        largest = float(mx.abs(gradient).max().item().real)
        assert largest > 0, name
        difference = float(mx.abs(gradient - fast[name]).max().item().real)
        assert difference < 1e-3 * largest, name


@cpu_only
def test_half_precision_becomes_float32_and_layers_stay_quantised(tiny: Path) -> None:
    loaded: Any = load(str(tiny))
    model = loaded[0]
    model.set_dtype(mx.float16)

    speed_up(model)

    kinds = {v.dtype for _, v in tree_flatten(model.parameters())}
    assert kinds == {mx.float32, mx.uint32}
    layer = model.layers[0].mlp.up_proj
    assert isinstance(layer, DenseProductLinear)
    assert isinstance(layer, nn.QuantizedLinear)


@cpu_only
def test_one_row_and_many_rows_give_the_same_product(tiny: Path) -> None:
    loaded: Any = load(str(tiny))
    model = loaded[0]
    speed_up(model)
    layer = model.layers[0].self_attn.q_proj
    rows = mx.random.normal((5, 64), key=mx.random.key(0))

    together = layer(rows)
    alone = mx.concatenate([layer(rows[i : i + 1]) for i in range(5)])

    assert mx.allclose(together, alone, atol=1e-4).item()


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def test_asking_about_the_cpu_loads_no_mlx() -> None:
    code = (
        "import sys; from oodatcaa.training.mlx.blas import describe_cpu; import json;"
        "speed = describe_cpu();"
        "print(json.dumps([speed.device, 'mlx' in sys.modules, 'mlx.core' in sys.modules]))"
    )
    device, *loaded = json.loads(run_python(code))
    assert device in {"cpu", "metal", "cuda"}
    assert loaded == [False, False]


@pytest.mark.skipif(blas.accelerator() != "cpu", reason="nothing is preloaded for a GPU")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only")
def test_preloading_after_mlx_is_an_error_because_it_would_do_nothing() -> None:
    code = (
        "import mlx.core\nfrom oodatcaa.training.mlx.blas import preload\n"
        "try:\n    preload()\nexcept RuntimeError as error:\n    print(error)"
    )
    assert "before mlx is imported" in run_python(code)


@pytest.mark.skipif(blas.find_blas() is None, reason="no BLAS to preload on this machine")
@pytest.mark.skipif(blas.accelerator() != "cpu", reason="nothing is preloaded for a GPU")
def test_the_preloaded_library_is_the_one_that_multiplies() -> None:
    code = (
        "from oodatcaa.training.mlx.blas import preload\nblas = preload()\n"
        "import ctypes, mlx.core as mx\na = mx.ones((64, 64)); mx.eval(a @ a)\n"
        "library = ctypes.CDLL(blas.path)\n"
        "found = ctypes.cast(ctypes.CDLL(None).cblas_sgemm, ctypes.c_void_p).value\n"
        "print(found == ctypes.cast(library.cblas_sgemm, ctypes.c_void_p).value)"
    )
    assert run_python(code).split()[-1] == "True"


def test_mkl_beside_the_environment_comes_first(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libmkl_rt.so.2").touch()

    found = blas.find_blas(tmp_path)

    assert found is not None
    assert (found.name, found.path) == ("MKL", str(tmp_path / "lib" / "libmkl_rt.so.2"))
