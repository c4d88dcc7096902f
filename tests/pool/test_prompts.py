"""Read prompts are kept and go on: equal answers, fewer tokens read, bounds, who leaves."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from oodatcaa.app.serving import Shared
from oodatcaa.domain.base import GB
from oodatcaa.errors import OodatcaaError
from oodatcaa.pool.manager import ModelPoolManager
from oodatcaa.pool.records import Answer, Ask
from oodatcaa.training.mlx.infer import ENGINE
from oodatcaa.training.reservation import Reservations
from pool_places import Folders
from tiny_adapters import make_adapter
from tiny_model import HEADS, HIDDEN, VOCABULARY, make_tiny_model, write_tokenizer

OTHER_CACHES = """
import json, sys
from pathlib import Path
import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model
folder = Path(sys.argv[1])
config = json.loads((folder / "config.json").read_text())
mx.random.seed(3)
network, _ = load_model(folder, strict=False)
weights = {}
for name, value in tree_flatten(network.parameters()):
    if value.ndim > 1 and "A_log" not in name:
        value = mx.random.normal(value.shape) * value.shape[-1] ** -0.5
    weights[name] = value
mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
"""
"""A random model of any architecture that mlx-lm has, from its config.json alone."""

STORED_AS = """
import sys
import mlx.core as mx
path, stored = sys.argv[1:]
weights = mx.load(path)
for name, value in weights.items():
    if value.dtype != mx.uint32:
        weights[name] = value.astype(getattr(mx, stored))
mx.eval(weights)
mx.save_safetensors(path, weights, metadata={"format": "mlx"})
"""
"""The same model with its floats in another precision."""

SLIDING = {
    "architectures": ["Cohere2ForCausalLM"],
    "model_type": "cohere2",
    "hidden_size": 64,
    "head_dim": 16,
    "num_hidden_layers": 4,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": 24,
    "sliding_window_pattern": 2,
    "logit_scale": 1.0,
}
RECURRENT = {
    "architectures": ["MambaForCausalLM"],
    "model_type": "mamba",
    "hidden_size": 64,
    "intermediate_size": 128,
    "state_size": 8,
    "num_hidden_layers": 2,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "time_step_rank": 4,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def anew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelPoolManager]:
    """The pool that keeps nothing."""
    folder = tmp_path_factory.mktemp("anew")
    with ModelPoolManager(ENGINE, Folders(), log_dir=folder, prompt_cache_bytes=0) as made:
        yield made


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[ModelPoolManager]:
    with ModelPoolManager(ENGINE, Folders(), log_dir=tmp_path / "logs") as made:
        yield made


def ask(*tokens: int, max_tokens: int = 4) -> Ask:
    return Ask(tokens=tokens, max_tokens=max_tokens)


def some(seed: int, count: int) -> tuple[int, ...]:
    """Random tokens without the special ones; other seeds begin with other tokens."""
    chosen = random.Random(seed)
    rest = (chosen.randrange(3, VOCABULARY) for _ in range(count - 1))
    return (3 + seed, *rest)


def other_base(folder: Path, config: dict[str, object]) -> str:
    folder.mkdir()
    config = {**config, "vocab_size": VOCABULARY, "max_position_embeddings": 1024}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_tokenizer(folder)
    argv = [sys.executable, "-c", OTHER_CACHES, str(folder)]
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    subprocess.run(argv, check=True, timeout=200)
    return str(folder)


@pytest.mark.timeout(600)
def test_conversations_in_any_order_equal_those_that_are_read_anew(
    pool: ModelPoolManager, anew: ModelPoolManager, tiny: str, tmp_path: Path
) -> None:
    adapters: list[Path | None] = [
        None,
        make_adapter(tmp_path / "one", seed=1),
        make_adapter(tmp_path / "two", seed=2, rank=6, blocks=(0, 1, 2)),
        make_adapter(tmp_path / "dora", seed=3, dora=True),
    ]

    def converse(seed: int) -> list[Answer]:
        """Three turns; where an earlier conversation stands is not known."""
        choose, said, answers = random.Random(seed), list[dict[str, str]](), list[Answer]()
        adapter = choose.choice(adapters)
        for _ in range(3):
            words = " ".join(choose.choice(("add", "take", "7", "x")) for _ in range(9))
            said.append({"role": "user", "content": words})
            wanted = Ask(messages=tuple(said), max_tokens=choose.randrange(1, 12))
            if choose.random() < 0.4:
                # Somebody asks the same and goes away in the middle.
                with contextlib.closing(pool.stream(tiny, adapter, wanted)) as parts:
                    next(parts)
            answer = pool.generate(tiny, adapter, wanted)
            expected = anew.generate(tiny, adapter, wanted)
            assert answer.tokens == expected.tokens, (seed, adapter, said)
            assert expected.cached_tokens == 0
            answers.append(answer)
            said.append({"role": "assistant", "content": answer.text})
        return answers

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(converse, range(16)))
    for turns in found:
        for before, after in pairwise(turns):
            assert before.prompt_tokens <= after.cached_tokens < after.prompt_tokens
    assert len({answer.tokens for turns in found for answer in turns}) > 20
    status = pool.get_status()
    assert status.loads == 1
    assert 0 < status.prompt_bytes <= status.prompt_limit_bytes
    assert status.prompt_bytes == status.models[0].prompt_bytes
    (nothing,) = anew.get_status().models
    assert (nothing.prompts, nothing.prompt_bytes) == (0, 0)


def test_only_what_is_new_is_read(
    pool: ModelPoolManager, anew: ModelPoolManager, tiny: str, tmp_path: Path
) -> None:
    adapter = make_adapter(tmp_path / "adapter")

    def cached(*tokens: int, on: Path | None = None) -> int:
        answer = pool.generate(tiny, on, ask(*tokens))
        assert answer.prompt_tokens == len(tokens)
        assert answer.tokens == anew.generate(tiny, on, ask(*tokens)).tokens
        return answer.cached_tokens

    prompt = some(1, 20)
    first = pool.generate(tiny, None, ask(*prompt))
    assert (first.prompt_tokens, first.cached_tokens) == (20, 0)
    whole = (*prompt, *first.tokens)
    assert cached(*prompt) == 19, "one token is always read"
    assert cached(*whole, 7, 8) == len(whole)
    assert cached(*prompt[:9], 99) == 9
    assert cached(*prompt[:15], 98, 97) == 15
    assert cached(*whole, 7, 8, 9) == len(whole) + 2, "who went another way took nothing from it"
    assert cached(*some(2, 5)) == 0
    assert cached(prompt[0]) == 0
    assert cached(*prompt, on=adapter) == 0, "it reads with other weights"
    assert cached(*prompt, on=adapter) == 19

    short = pool.get_status().prompt_bytes
    long = some(5, 900)
    cached(*long)
    grown = pool.get_status().prompt_bytes - short
    assert cached(*long[:8], 99) == 8
    assert pool.get_status().prompt_bytes - short < 1.5 * grown, "only what it shares is copied"


def test_who_goes_away_leaves_what_was_read(
    pool: ModelPoolManager, anew: ModelPoolManager, tiny: str
) -> None:
    prompt = some(3, 30)
    with contextlib.closing(pool.stream(tiny, None, ask(*prompt, max_tokens=500))) as parts:
        heard = [next(parts).token for _ in range(3)]  # type: ignore[union-attr]
    longer = (*prompt, *heard, 7, 8)
    for wanted in (ask(*longer), ask(*prompt, max_tokens=9), ask(*longer, 9)):
        answer = pool.generate(tiny, None, wanted)
        assert answer.cached_tokens >= 29
        assert answer.tokens == anew.generate(tiny, None, wanted).tokens
    stopped = Ask(tokens=prompt, max_tokens=9, stop=(answer.text[:1] or "x",))
    assert pool.generate(tiny, None, stopped).text == anew.generate(tiny, None, stopped).text


@pytest.mark.slow
def test_the_bound_holds_over_all_bases_and_the_least_recently_used_leaves(
    tiny: str, tmp_path: Path
) -> None:
    other = str(make_tiny_model(tmp_path / "other", seed=5))
    with ModelPoolManager(ENGINE, Folders(), log_dir=tmp_path) as pool:
        pool.generate(tiny, None, ask(*some(0, 9)))
        one = pool.get_status().prompt_bytes
    bound = int(3.5 * one)
    with ModelPoolManager(ENGINE, Folders(), log_dir=tmp_path, prompt_cache_bytes=bound) as pool:

        def kept() -> tuple[int, int]:
            status = pool.get_status()
            assert status.prompt_bytes <= status.prompt_limit_bytes == bound
            prompts = {Path(model.model_id).name: model.prompts for model in status.models}
            return prompts[Path(tiny).name], prompts.get("other", 0)

        def cached(model: str, seed: int) -> int:
            return pool.generate(model, None, ask(*some(seed, 9))).cached_tokens

        for seed in (0, 1, 2, 0, 3):
            cached(tiny, seed)
        assert kept() == (3, 0)
        assert cached(tiny, 0) == 8, "it was used after 1"
        assert cached(tiny, 1) == 0
        # 3 is the oldest now; who goes another way after its beginning has used it.
        assert pool.generate(tiny, None, ask(*some(3, 9)[:5], 99)).cached_tokens == 5
        assert cached(tiny, 3) == 8
        assert cached(other, 0) == 0, "another model"
        assert kept() == (2, 1), "of the base that was idle for the longest time"
        assert cached(tiny, 3) == 8
        for seed in (0, 1, 2):
            cached(other, seed)
        assert kept() == (0, 3)
        pool.generate(tiny, None, ask(*some(4, 900)))
        assert kept() == (0, 3), "larger than the bound alone"


def test_an_adapter_takes_what_it_read_with_it(
    pool: ModelPoolManager, anew: ModelPoolManager, tiny: str, tmp_path: Path
) -> None:
    adapter, link = make_adapter(tmp_path / "adapter", seed=1), tmp_path / "latest"
    moved = make_adapter(tmp_path / "moved", seed=2)
    link.symlink_to(adapter)
    wanted = ask(*some(1, 20))
    pool.generate(tiny, None, wanted)
    pool.generate(tiny, link, wanted)
    assert pool.get_status().models[0].prompts == 2

    make_adapter(adapter, seed=3)  # trained again in place
    retrained = pool.generate(tiny, link, wanted)
    assert retrained.cached_tokens == 0
    assert retrained.tokens == anew.generate(tiny, adapter, wanted).tokens
    assert pool.get_status().models[0].prompts == 2, "what the old weights read is gone"

    link.unlink()
    link.symlink_to(moved)
    newest = pool.generate(tiny, link, wanted)
    assert newest.cached_tokens == 0
    assert newest.tokens == anew.generate(tiny, moved, wanted).tokens
    assert pool.generate(tiny, adapter, wanted).cached_tokens == 19, "nobody took its place"


def test_what_an_answer_left_early_has_read_is_counted(pool: ModelPoolManager, tiny: str) -> None:
    pool.get_model(tiny)
    assert pool.get_status().prompt_bytes == 0
    with contextlib.closing(pool.stream(tiny, None, ask(*some(0, 20), max_tokens=200))) as parts:
        next(parts)
    status = pool.get_status()
    assert (status.models[0].prompts, status.models[0].in_use) == (1, 0)
    assert 0 < status.prompt_bytes <= status.bytes


@pytest.mark.parametrize(("stored", "bytes_per_value"), [("float32", 4), ("bfloat16", 2)])
def test_a_cache_is_counted_in_the_values_that_the_model_computes_with(
    tiny: str, tmp_path: Path, stored: str, bytes_per_value: int
) -> None:
    base = Path(shutil.copytree(tiny, tmp_path / "base"))
    argv = [sys.executable, "-c", STORED_AS, str(base / "model.safetensors"), stored]
    subprocess.run(argv, check=True, timeout=200)
    config = json.loads((base / "config.json").read_text())
    config["max_position_embeddings"] = 10**9
    (base / "config.json").write_text(json.dumps(config))
    values = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * (HIDDEN // HEADS)
    tokens = 10 * GB // values
    with (
        ModelPoolManager(ENGINE, Folders(), memory_limit_bytes=2 * GB, log_dir=tmp_path) as pool,
        pytest.raises(OodatcaaError) as caught,
    ):
        pool.generate(str(base), None, ask(3, max_tokens=tokens))
    assert caught.value.code == "pool.memory"
    assert f"need a cache of {10 * bytes_per_value}.00 GB" in caught.value.message


@pytest.mark.slow
def test_prompts_leave_before_an_adapter_does(tiny: str, tmp_path: Path) -> None:
    # Large ones: a few kilobytes would drown in what a process needs anyway.
    folders = [make_adapter(tmp_path / str(n), seed=n, rank=30_000, blocks=(2,)) for n in range(3)]
    size = (folders[0] / "adapters.safetensors").stat().st_size
    with ModelPoolManager(ENGINE, Folders(), log_dir=tmp_path) as pool:
        pool.generate(tiny, folders[0], ask(*some(0, 9)))
        pool.generate(tiny, folders[1], ask(*some(0, 9)))
        limit = pool.get_status().bytes + size // 2
    with ModelPoolManager(ENGINE, Folders(), memory_limit_bytes=limit, log_dir=tmp_path) as pool:
        for number in (0, 1):
            for seed in range(3):
                pool.generate(tiny, folders[number], ask(*some(seed, 9)))
        before = pool.get_status()
        pool.generate(tiny, folders[2], ask(*some(0, 9)))
        after = pool.get_status()
        assert (before.evicted_adapters, after.evicted_adapters) == (0, 1)
        assert after.models[0].prompts == 1, "they were too small to help, and first to leave"


@pytest.mark.slow
def test_room_for_an_adapter_is_made_of_prompts(tiny: str, tmp_path: Path) -> None:
    folders = [make_adapter(tmp_path / str(n), seed=n, rank=30_000, blocks=(2,)) for n in (0, 1)]
    size = (folders[0] / "adapters.safetensors").stat().st_size
    ledger, limit = Reservations(tmp_path / "ledger"), 2 * GB
    with ModelPoolManager(
        ENGINE, Folders(), memory_limit_bytes=limit, memory=Shared(ledger), log_dir=tmp_path
    ) as pool:
        prompt = some(0, 1000)
        for last in range(3, 103):
            # Of all these ways on, only the ends are read, but each is held.
            pool.generate(tiny, folders[0], ask(*prompt[:990], last, max_tokens=1))
        full = pool.get_status()
        assert full.prompt_bytes > 1.5 * size
        rest = limit - sum(part.bytes for part in ledger.holders())
        with ledger.reserve(rest, limit, label="training"):
            pool.generate(tiny, folders[1], ask(*some(1, 9)))
        after = pool.get_status()
    assert (after.evicted_adapters, len(after.models[0].adapters)) == (0, 2)
    assert 0 < after.prompt_bytes < full.prompt_bytes


@pytest.mark.slow
@pytest.mark.parametrize("config", [SLIDING, RECURRENT], ids=["sliding", "recurrent"])
def test_caches_that_can_not_go_back_are_used_whole_or_not_at_all(
    pool: ModelPoolManager, anew: ModelPoolManager, tmp_path: Path, config: dict[str, object]
) -> None:
    base = other_base(tmp_path / "base", config)
    prompt = some(1, 40)
    first = pool.generate(base, None, ask(*prompt, max_tokens=6))
    whole = (*prompt, *first.tokens)
    steps = [
        (ask(*prompt), 0),
        (ask(*prompt[:30], 9), 0),
        (ask(*whole), len(prompt) + 4),
        (ask(*whole, 7, 8, 9), len(whole)),
        (ask(*whole, 11, 12), len(whole)),
    ]
    for wanted, cached in steps:
        answer = pool.generate(base, None, wanted)
        expected = anew.generate(base, None, wanted)
        assert (answer.tokens, answer.cached_tokens) == (expected.tokens, cached), wanted
