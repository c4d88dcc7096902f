"""The pool with real children, real adapters and a real memory limit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from oodatcaa.errors import OodatcaaError
from oodatcaa.pool.adapters import adapter_problems
from oodatcaa.pool.pool import Pool, pool_key
from tiny_model import make_tiny_data, make_tiny_model

ENGINE = "oodatcaa.training.mlx.infer:open_chat"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    import subprocess
    import sys

    root = tmp_path_factory.mktemp("run")
    params = {"rank": 4, "num_layers": 3, "iters": 10, "learning_rate": 0.02, "save_every": 100}
    data = make_tiny_data(root / "data", 8)
    spec = {"model": str(tiny), "data_dir": str(data), "params": params}
    (root / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "oodatcaa.training.mlx.worker", str(root)]
    subprocess.run(command, capture_output=True, timeout=90, check=True)
    return root / "adapters"


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    with Pool(ENGINE, log_dir=tmp_path / "logs") as made:
        yield made


def test_base_and_adapter_answer_from_processes_of_their_own(
    pool: Pool, tiny: Path, adapter: Path
) -> None:
    plain = pool.generate(str(tiny), None, "Write add_1(x).", max_tokens=5)
    tuned = pool.generate(str(tiny), str(adapter), "Write add_1(x).", max_tokens=5)
    again = pool.generate(str(tiny), None, "Write add_1(x).", max_tokens=5)

    assert plain.generation.text == again.generation.text != tuned.generation.text
    assert 0 < plain.generation.tokens <= 5
    status = pool.status()
    keys = [member.key for member in status.members]
    assert keys == [str(tiny), pool_key(str(tiny), str(adapter))]
    assert len({member.pid for member in status.members}) == 2
    assert status.memory_bytes == sum(m.memory_bytes for m in status.members) > 0

    pids = [member.pid for member in status.members]
    pool.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_the_least_recently_used_leaves_when_memory_is_short(
    tiny: Path, adapter: Path, tmp_path: Path
) -> None:
    with Pool(ENGINE, log_dir=tmp_path) as probe:
        probe.generate(str(tiny), None, "a", max_tokens=1)
        one = probe.status().memory_bytes
    with Pool(ENGINE, memory_limit_bytes=one + one // 2, log_dir=tmp_path) as pool:
        pool.generate(str(tiny), None, "a", max_tokens=1)
        pool.generate(str(tiny), str(adapter), "a", max_tokens=1)

        status = pool.status()
        assert [m.key for m in status.members] == [pool_key(str(tiny), str(adapter))]
        assert status.evicted == 1
        assert status.memory_bytes <= status.memory_limit_bytes


def test_what_can_never_fit_is_refused(tiny: Path, tmp_path: Path) -> None:
    for limit in (1000, 20_000_000):
        with Pool(ENGINE, memory_limit_bytes=limit, log_dir=tmp_path) as pool:
            with pytest.raises(OodatcaaError) as caught:
                pool.generate(str(tiny), None, "a", max_tokens=1)
            assert caught.value.code == "pool.memory"
            assert pool.status().members == ()


def test_a_killed_child_is_reported_and_loaded_again(pool: Pool, tiny: Path) -> None:
    pool.generate(str(tiny), None, "a", max_tokens=1)
    first = pool.status().members[0].pid
    os.kill(first, signal.SIGSTOP)
    with pytest.raises(OodatcaaError) as caught:
        pool.generate(str(tiny), None, "a", max_tokens=1, timeout=0.3)
    assert caught.value.code == "pool.timeout"
    assert not psutil.pid_exists(first)

    pool.generate(str(tiny), None, "a", max_tokens=1)
    assert pool.status().members[0].pid != first


def test_an_unusable_model_is_the_childs_own_error(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(OodatcaaError) as caught:
        pool.generate(str(tmp_path), None, "a")
    assert caught.value.code == "model.unreadable"
    assert pool.status().members == ()


def test_all_problems_of_an_adapter_folder_are_told_at_once(
    pool: Pool, tiny: Path, adapter: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(adapter, copy)
    assert adapter_problems(copy, str(tiny)) == []

    config: dict[str, Any] = json.loads((copy / "adapter_config.json").read_text())
    wrong = {**config, "model": "/another/model", "num_layers": "x", "lora_parameters": {}}
    (copy / "adapter_config.json").write_text(json.dumps(wrong))
    weights = (copy / "adapters.safetensors").read_bytes()
    (copy / "adapters.safetensors").write_bytes(weights[:-10])

    with pytest.raises(OodatcaaError) as caught:
        pool.generate(str(tiny), str(copy), "a")
    assert caught.value.code == "pool.adapter"
    told = "\n".join(caught.value.details)
    for part in ("/another/model", "num_layers", "rank, scale, dropout", "cut off"):
        assert part in told
    assert len(caught.value.details) == 4


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}"])
def test_weights_that_are_none_are_a_problem_not_a_crash(
    content: bytes, adapter: Path, tiny: Path, tmp_path: Path
) -> None:
    shutil.copy(adapter / "adapter_config.json", tmp_path)
    (tmp_path / "adapters.safetensors").write_bytes(content)

    assert len(adapter_problems(tmp_path, str(tiny))) == 1
