"""Who has to leave when the memory limit is reached, and who may stay: real children, measured."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from oodatcaa.app.serving import Shared
from oodatcaa.errors import OodatcaaError, RefusedError
from oodatcaa.pool.manager import ModelPoolManager
from oodatcaa.pool.records import Answer, Ask, PoolStatus
from oodatcaa.training.mlx.infer import ENGINE
from oodatcaa.training.reservation import Reservations
from pool_places import Folders
from tiny_adapters import make_adapter
from tiny_model import make_tiny_model

HELLO = Ask(prompt="hello", max_tokens=2)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    root = tmp_path_factory.mktemp("bases")
    a, b, c = (str(make_tiny_model(root / name, seed=n)) for n, name in enumerate("abc"))
    return a, b, c


@pytest.fixture(scope="module")
def one(bases: tuple[str, str, str], tmp_path_factory: pytest.TempPathFactory) -> int:
    """Bytes of one loaded model that has answered."""
    with ModelPoolManager(ENGINE, Folders(), log_dir=tmp_path_factory.mktemp("one")) as pool:
        pool.generate(bases[0], None, HELLO)
        return pool.get_status().bytes


def _add_weights(path: Path, size: int) -> None:
    """A safetensors file with a hole where its values would be."""
    header = {"more.bias": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)


def names(status: PoolStatus) -> str:
    """Most recently used first."""
    return "".join(model.model_id for model in status.models)


def test_the_least_recently_used_model_leaves(
    bases: tuple[str, str, str], one: int, tmp_path: Path
) -> None:
    a, b, c = bases
    limit = int(2.5 * one)
    with ModelPoolManager(ENGINE, Folders(), memory_limit_bytes=limit, log_dir=tmp_path) as pool:
        for model in (a, b, a):
            pool.generate(model, None, HELLO)
        assert names(pool.get_status()) == "ab"
        pool.generate(c, None, HELLO)
        assert names(pool.get_status()) == "ca", "b was idle for the longest time"
        pool.generate(b, None, HELLO)
        status = pool.get_status()
        assert names(status) == "bc"
        assert (status.loads, status.evicted_models) == (4, 2)
        assert status.bytes <= status.memory_limit_bytes == limit
        assert all(one / 2 < model.bytes < 2 * one for model in status.models), "measured"


@pytest.mark.slow
def test_what_is_in_use_is_never_evicted(
    bases: tuple[str, str, str], one: int, tmp_path: Path
) -> None:
    a, b, c = bases
    limit = int(1.5 * one)
    with ModelPoolManager(ENGINE, Folders(), memory_limit_bytes=limit, log_dir=tmp_path) as pool:
        parts = pool.stream(a, None, Ask(prompt="hello", max_tokens=40, temperature=1.0, seed=1))
        next(parts)
        with pytest.raises(RefusedError) as caught:
            pool.generate(b, None, HELLO)
        assert caught.value.code == "pool.memory"
        assert "are in use by other models" in caught.value.message
        assert pool.get_status().models[0].in_use == 1
        *_, last = parts
        assert isinstance(last, Answer)
        assert last.tokens, "the answer came to its own end"
        pool.generate(b, None, HELLO)
        assert names(pool.get_status()) == "b"

        too_large = tmp_path / "large"
        shutil.copytree(c, too_large)
        _add_weights(too_large / "model-more.safetensors", 5_000_000_000)
        with pytest.raises(RefusedError, match="large needs 5"):
            pool.get_model(str(too_large))
        assert names(pool.get_status()) == "b", "nobody's leaving would have helped"


@pytest.mark.slow
def test_adapters_leave_before_one_more_is_refused(
    bases: tuple[str, str, str], tmp_path: Path
) -> None:
    base, grown, folders = bases[0], 0, []
    for seed in range(3):
        # Large ones: a few kilobytes would drown in what a process needs anyway.
        folders.append(make_adapter(tmp_path / str(seed), seed=seed, rank=30_000, blocks=(2,)))
    with ModelPoolManager(ENGINE, Folders(), log_dir=tmp_path) as pool:
        pool.generate(base, folders[0], HELLO)
        first = pool.get_status().bytes
        pool.generate(base, folders[1], HELLO)
        grown = pool.get_status().bytes - first
    size = (folders[0] / "adapters.safetensors").stat().st_size
    assert grown > size / 2
    limit = first + grown + size // 2
    with ModelPoolManager(ENGINE, Folders(), memory_limit_bytes=limit, log_dir=tmp_path) as pool:
        for number in (0, 1, 0, 2):
            pool.generate(base, folders[number], HELLO)
        status = pool.get_status()
        on = [Path(adapter.adapter_path).name for adapter in status.models[0].adapters]
        assert on == ["2", "0"], "1 was idle for the longest time"
        assert (status.loads, status.evicted_models, status.evicted_adapters) == (1, 0, 1)


def test_memory_that_training_holds_is_not_there(
    bases: tuple[str, str, str], one: int, tmp_path: Path
) -> None:
    ledger = Reservations(tmp_path / "ledger")
    size, limit = one, int(2.5 * one)
    with ModelPoolManager(
        ENGINE, Folders(), memory_limit_bytes=limit, memory=Shared(ledger), log_dir=tmp_path
    ) as pool:
        with ledger.reserve(2 * size, limit, label="training"):
            with pytest.raises(RefusedError) as caught:
                pool.generate(bases[0], None, HELLO)
            assert caught.value.code == "pool.memory"
            assert "training (pid" in caught.value.message
        pool.generate(bases[0], None, HELLO)
        held = ledger.holders()
        assert {part.label for part in held} == {"serving a"}
        assert sum(part.bytes for part in held) >= pool.get_status().bytes
        with pytest.raises(RefusedError), ledger.reserve(2 * size, limit, label="t", wait=False):
            pass
    assert ledger.holders() == ()


def test_requests_at_once_load_a_model_once(bases: tuple[str, str, str], tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "adapter")
    together = threading.Barrier(6)

    def ask(number: int) -> int:
        together.wait()
        adapter = folder if number % 2 else None
        loaded = (
            pool.get_model_with_adapter(bases[0], adapter) if adapter else pool.get_model(bases[0])
        )
        return loaded.pid

    with ModelPoolManager(ENGINE, Folders(), log_dir=tmp_path) as pool:
        with ThreadPoolExecutor(6) as threads:
            pids = set(threads.map(ask, range(6)))
        status = pool.get_status()
    assert len(pids) == 1
    assert (status.loads, status.models[0].hits, len(status.models[0].adapters)) == (1, 6, 1)


def test_a_failed_load_fails_all_who_waited_and_the_next_one_tries_again(
    tmp_path: Path,
) -> None:
    folder = make_tiny_model(tmp_path / "base")
    tokenizer = (folder / "tokenizer.json").read_bytes()
    (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    together = threading.Barrier(3)

    def ask(_: int) -> str:
        together.wait()
        try:
            pool.get_model(str(folder))
        except OodatcaaError as error:
            return error.code
        return ""

    with ModelPoolManager(ENGINE, Folders(), log_dir=tmp_path / "logs") as pool:
        with ThreadPoolExecutor(3) as threads:
            codes = set(threads.map(ask, range(3)))
        assert len(codes) == 1
        assert "" not in codes
        assert pool.get_status().models == ()
        (folder / "tokenizer.json").write_bytes(tokenizer)
        assert pool.get_model(str(folder)).pid
