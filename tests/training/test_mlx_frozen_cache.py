"""What the frozen blocks make of an example is kept, and the training stays the same."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

from adapted_model import adapted
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.training import TrainSpec
from oodatcaa.kit.machine import in_memory
from oodatcaa.training.checkpoints import checkpoint_name, newest_whole
from oodatcaa.training.examples import Example
from oodatcaa.training.identity import parameter_facts, pinned
from oodatcaa.training.mlx.batches import Batch, make_batch, make_packed
from oodatcaa.training.mlx.cpu import on_cpu
from oodatcaa.training.mlx.frozen_cache import FrozenCache
from oodatcaa.training.mlx.loss import make_loss, split_head
from oodatcaa.training.mlx.packed import route
from oodatcaa.training.mlx.parallel import divided_gradient
from oodatcaa.training.mlx.prefix import FrozenPrefix, frozen_prefix
from oodatcaa.training.mlx.team import Team, make_team
from oodatcaa.training.packing import Row
from oodatcaa.training.protocol import (
    ADAPTER_FILE,
    ADAPTERS_DIR,
    CHECKPOINTS_DIR,
    METRICS_FILE,
    SPEC_FILE,
)
from packed_models import network_of
from tiny_model import make_tiny_data, make_tiny_model

pytestmark = [
    pytest.mark.skipif(not on_cpu(), reason="written for MLX's CPU device"),
    pytest.mark.skipif(
        in_memory(Path(tempfile.gettempdir())), reason="temporary files are in memory: none is kept"
    ),
]
LONGEST = 96
SHARED = Path("/dev/shm")
EXAMPLES = [
    Example(tuple((7 * n + 3 * place) % 300 + 3 for place in range(length)), 1 + n % 2 * 6)
    for n, length in enumerate((9, 40, 33, 65, 12, 97, 20, 31))
]
Make = Callable[..., FrozenCache]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    made = adapted(tiny, 1)
    route(made)
    made.train()
    return made


@pytest.fixture(scope="module")
def prefix(model: Any) -> FrozenPrefix:
    found = frozen_prefix(model)
    assert found is not None
    return found


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def team(model: Any, prefix: FrozenPrefix, request: pytest.FixtureRequest) -> Iterator[Team | None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MKL_NUM_THREADS", str(request.param))
        # The tiny model's tensors would all be below the size from which leaving the graph pays.
        patch.setattr("oodatcaa.training.mlx.vector.FEW", 1)
        made = make_team(model, 8)
        assert (made is None) == (request.param == 1)
        if made is not None:
            made.adopt(prefix)
        yield made
        if made is not None:
            made.close()


@pytest.fixture
def make(tmp_path: Path, model: Any, prefix: FrozenPrefix, team: Team | None) -> Iterator[Make]:
    made: list[FrozenCache] = []

    def cache(most_bytes: int | None = None) -> FrozenCache:
        made.append(FrozenCache(tmp_path, model, prefix, team, LONGEST, most_bytes))
        return made[-1]

    yield cache
    for one in made:
        one.close()


def bits(cache: FrozenCache, examples: list[Example]) -> dict[tuple[int, ...], bytes]:
    length = max(len(one.tokens) for one in examples) + 5
    found = cache.hidden([[one] for one in examples], length)
    assert found.shape[:2] == (len(examples), length)
    return {
        one.tokens: np.array(found[row, : len(one.tokens) - 1]).tobytes()
        for row, one in enumerate(examples)
    }


@settings(max_examples=10, deadline=None)
@given(
    order=st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=4), min_size=2, max_size=6),
    most=st.sampled_from([None, 0, 20_000]),
)
def test_an_example_has_the_same_bits_whatever_came_before_or_is_beside_it(
    order: list[list[int]], most: int | None, make_once: Make, reference: dict[Any, bytes]
) -> None:
    cache = make_once(most)
    for batch in order:
        for tokens, found in bits(cache, [EXAMPLES[n] for n in batch]).items():
            assert found == reference[tokens]
    several = len({n for batch in order for n in batch})
    asked = sum(len(set(batch)) for batch in order)
    assert cache.found + cache.computed == asked
    if most is None:
        assert cache.computed == several
    if most == 0:
        assert cache.computed == asked


@pytest.fixture(scope="module")
def make_once(
    model: Any, prefix: FrozenPrefix, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Make]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MKL_NUM_THREADS", "3")
        patch.setattr("oodatcaa.training.mlx.vector.FEW", 1)
        team = make_team(model, 8)
        assert team is not None
        team.adopt(prefix)
        yield lambda most: FrozenCache(folder, model, prefix, team, LONGEST, most)
        team.close()


@pytest.fixture(scope="module")
def reference(make_once: Make) -> dict[Any, bytes]:
    found: dict[Any, bytes] = {}
    for one in EXAMPLES:
        cache = make_once(None)
        found |= bits(cache, [one])
        cache.close()
    return found


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_a_step_from_the_cache_is_the_same_step(
    model: Any, prefix: FrozenPrefix, team: Team | None, make: Make, packing: bool
) -> None:
    few = EXAMPLES[:4]
    rows: list[Row] = [[few[0], few[1], few[2]], [few[3]]] if packing else [[e] for e in few]
    batch = make_packed(rows, LONGEST) if packing else make_batch(few, LONGEST)
    split = split_head(model)
    loss = make_loss(split, prefix=prefix, at_once=True)
    whole = gradients(model, loss, batch)
    cache = make()
    divided = loss if team is None else divided_gradient(team, loss, None)
    for _ in range(2):
        quick = batch._replace(hidden=cache.hidden(rows, batch.inputs.shape[1]))
        found = gradients(model, divided, quick)
        for name, expected in whole.items():
            assert mx.allclose(found[name], expected, rtol=1e-3, atol=1e-5).item(), name
    assert (cache.computed, cache.found) == (4, 4)


def gradients(model: Any, loss: Any, batch: Batch) -> dict[str, mx.array]:
    (value, count), found = nn.value_and_grad(model, loss)(model, *batch)
    mx.eval(value, count, found)
    return {"loss": value, **dict(tree_flatten(found))}


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_ends_the_keeping_and_nothing_else(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = make()
    first = bits(cache, EXAMPLES)
    assert 0 < cache.size <= 30_000
    assert capfd.readouterr().out.count("as large as the disk lets it be") == 1
    before = cache.computed
    assert bits(cache, EXAMPLES) == first
    assert before < cache.computed < 2 * before


@pytest.fixture
def small_disk() -> Iterator[None]:
    """The kernel lets no file of this process grow beyond 30 kB: EFBIG, as a full disk's ENOSPC."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_the_file_has_no_name_and_half_of_the_free_disk_at_most(make: Make, tmp_path: Path) -> None:
    cache = make()
    bits(cache, EXAMPLES)
    assert list(tmp_path.iterdir()) == []
    wide = 64 * 4
    assert cache.size == wide * sum(len(one.tokens) - 1 for one in EXAMPLES)


def test_what_the_disk_did_not_keep_is_not_trained_on(make: Make, tmp_path: Path) -> None:
    """A page that the kernel could not write back is dropped, and reads as what was there before:
    the program is never told."""
    cache = make()
    bits(cache, EXAMPLES)
    (file,) = (number for number, path in open_files() if path.startswith(f"{tmp_path}/"))
    os.pwrite(file, bytes(4096), 0)
    with pytest.raises(OSError, match="does not give back what was written"):
        bits(cache, EXAMPLES)


def open_files() -> Iterator[tuple[int, str]]:
    for link in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            yield int(link.name), str(link.readlink())


@pytest.mark.skipif(
    not SHARED.is_dir() or not in_memory(SHARED), reason="no file system in memory there"
)
def test_nothing_is_kept_in_a_file_system_in_memory(
    model: Any, prefix: FrozenPrefix, capfd: pytest.CaptureFixture[str]
) -> None:
    """It would be memory that no gate counts, half of what is free."""
    with tempfile.TemporaryDirectory(dir=SHARED) as folder:
        cache = FrozenCache(Path(folder), model, prefix, None, LONGEST)
        first = bits(cache, EXAMPLES)
        assert bits(cache, EXAMPLES) == first
        cache.close()
    assert (cache.size, cache.found) == (0, 0)
    assert "is in memory, not on a disk: nothing is kept" in capfd.readouterr().out


class _Both(nn.Module):  # type: ignore[misc]
    """A block that mixes all positions, as an encoder's does."""

    def __call__(self, x: mx.array, *_: Any) -> mx.array:
        return x + x.mean(axis=1, keepdims=True)


def test_blocks_that_look_at_what_is_beside_an_example_are_not_cached(
    tiny: Path, tmp_path: Path
) -> None:
    made = adapted(tiny, 1)
    made.model.layers[0] = _Both()
    prefix = frozen_prefix(made)
    assert prefix is not None
    cache = FrozenCache(tmp_path, made, prefix, None, LONGEST)
    assert "beside another one" in cache.unfit([EXAMPLES[0], EXAMPLES[1]])
    cache.close()


SCALED = {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 64}


@pytest.mark.parametrize("half", [False, True])
def test_blocks_that_count_the_length_of_a_row_are_not_cached(tmp_path: Path, half: bool) -> None:
    """In half precision their output alone would not tell it from rounding."""
    for options, why in (({}, ""), (SCALED, "its rotary embedding depends on the length of a row")):
        made = network_of("llama", {"vocab_size": 384, **options}, trained=1)
        if half:
            made.set_dtype(mx.bfloat16)
        prefix = frozen_prefix(made)
        assert prefix is not None
        cache = FrozenCache(tmp_path, made, prefix, None, LONGEST)
        assert cache.unfit([EXAMPLES[0], EXAMPLES[5]]) == why
        cache.close()


def test_it_may_not_be_switched_in_mid_run() -> None:
    assert parameter_facts(QLoRA(cache_frozen=True)) != parameter_facts(QLoRA())


PARAMS: dict[str, Any] = {
    **{"rank": 4, "num_layers": 1, "batch_size": 3, "max_seq_length": 64, "iters": 14},
    **{"learning_rate": 0.01, "steps_per_eval": 3, "val_batches": -1, "save_every": 2},
    **{"cache_frozen": True},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_data(tmp_path_factory.mktemp("data"), 12)


def worker(folder: Path, spec: TrainSpec, **extra: str) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SPEC_FILE).write_text(spec.model_dump_json())
    command = [sys.executable, "-m", "oodatcaa.training.mlx.worker", str(folder)]
    env = {**os.environ, **pinned({**os.environ, "MKL_NUM_THREADS": "2"}), **extra}
    with (folder / "train.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    return [line["loss"] for line in lines]


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("more", "environment"),
    [
        pytest.param({"packing": True}, {}, id="packed"),
        pytest.param({}, {"OODATCAA_FAST_CPU": "0"}, id="stock products", marks=pytest.mark.slow),
    ],
)
def test_killed_in_a_later_epoch_it_goes_on_to_the_bits_of_a_run_that_never_was(
    tmp_path: Path, tiny: Path, data: Path, more: dict[str, Any], environment: dict[str, str]
) -> None:
    spec = TrainSpec.model_validate(
        {"model": str(tiny), "data_dir": str(data), "params": {**PARAMS, **more}}
    )
    whole = worker(tmp_path / "whole", spec, **environment)
    plain = spec.evolve(params=spec.params.evolve(cache_frozen=False))
    uncached = worker(tmp_path / "uncached", plain, **environment)
    assert [whole.wait(300), uncached.wait(300)] == [0, 0]
    rel = 1e-3 if not environment else 2e-2
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "uncached"), rel=rel)

    killed = worker(tmp_path / "killed", spec, **environment)
    parent = tmp_path / "killed" / CHECKPOINTS_DIR
    deadline = time.monotonic() + 300
    try:
        while not (parent / checkpoint_name(6)).exists():
            assert killed.poll() is None, "the worker ended early"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        killed.kill()
        killed.wait()
    note, _ = newest_whole(parent)
    assert note is not None
    place = parent / checkpoint_name(note.iteration)
    again = spec.evolve(resume_from=str(place), start_iteration=note.iteration)
    assert worker(tmp_path / "again", again, **environment).wait(300) == 0
    assert adapter(tmp_path / "again") == adapter(tmp_path / "whole")
    assert losses(tmp_path / "again") == losses(tmp_path / "whole")
    told = (tmp_path / "whole" / "train.log").read_text()
    # 12 to train on and 4 to validate on, in 14 steps of 3 rows and 5 validations.
    assert "cache_frozen: 16 examples in" in told
    assert "computed 16 times" in told
    for folder in ("whole", "killed", "again"):
        assert not list((tmp_path / folder).glob("tmp*")), "the cache left its file"


@pytest.mark.timeout(300)
def test_a_model_that_can_not_be_cached_trains_as_without(tmp_path: Path) -> None:
    """A plan and `train --auto-fit` choose the cache by themselves: nobody could leave it out."""
    model = make_tiny_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **SCALED}))
    data = make_tiny_data(tmp_path / "data", 12)
    with (data / "train.jsonl").open("a") as lines:
        said = [("user", "Say it."), ("assistant", "again and " * 40)]
        long = [{"role": role, "content": content} for role, content in said]
        lines.write(json.dumps({"messages": long}) + "\n")
    few = {**PARAMS, "iters": 8, "max_seq_length": 128}
    spec = TrainSpec.model_validate({"model": str(model), "data_dir": str(data), "params": few})
    plain = spec.evolve(params=spec.params.evolve(cache_frozen=False))
    for name, one in (("asked", spec), ("plain", plain)):
        assert worker(tmp_path / name, one).wait(200) == 0, (
            tmp_path / name / "train.log"
        ).read_text()
    assert adapter(tmp_path / "asked") == adapter(tmp_path / "plain")
    told = (tmp_path / "asked" / "train.log").read_text()
    assert "this model trains without it: its rotary embedding depends on the length" in told


def adapter(folder: Path) -> bytes:
    return (folder / ADAPTERS_DIR / ADAPTER_FILE).read_bytes()
