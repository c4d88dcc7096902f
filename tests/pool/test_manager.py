"""The pool with real children, real adapters, stock mlx-lm beside it."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from oodatcaa.pool.manager import ModelPoolManager
from oodatcaa.pool.records import Ask
from oodatcaa.training.mlx.infer import ENGINE
from pool_places import Folders
from tiny_adapters import make_adapter, make_peft_adapter
from tiny_model import make_tiny_model

REFERENCE = """
import json, sys
from mlx_lm import load
from mlx_lm.generate import stream_generate
asked = json.loads(sys.argv[1])
out = {}
for name, adapter in asked["adapters"].items():
    model, tokenizer = load(asked["model"], adapter_path=adapter)
    for prompt in asked["prompts"]:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        replies = stream_generate(model, tokenizer, text, max_tokens=asked["max_tokens"])
        out[f"{name}|{prompt}"] = [int(reply.token) for reply in replies]
print(json.dumps(out))
"""
"""What `mlx_lm.generate --adapter-path` does, with the token ids that it does not print."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelPoolManager]:
    with ModelPoolManager(ENGINE, Folders(), log_dir=tmp_path_factory.mktemp("logs")) as made:
        yield made


def chat(prompt: str, max_tokens: int = 8) -> Ask:
    return Ask(messages=({"role": "user", "content": prompt},), max_tokens=max_tokens)


def different_adapters(root: Path) -> dict[str, str | None]:
    """The bare base, and adapters that differ in blocks, matrices, rank, scale and kind."""
    made: dict[str, Path] = {
        "plain": make_adapter(root / "plain", seed=1),
        "last": make_adapter(root / "last", seed=2, rank=2, blocks=(2,), scale=20.0),
        "all": make_adapter(root / "all", seed=3, rank=6, blocks=(0, 1, 2)),
        "keys": make_adapter(root / "keys", seed=4, keys=("self_attn.k_proj",)),
        "dora": make_adapter(root / "dora", seed=5, dora=True),
    }
    return {"base": None, **{name: str(folder) for name, folder in made.items()}}


@pytest.mark.timeout(900)
def test_any_interleaving_equals_stock_mlx_lm_token_by_token(
    pool: ModelPoolManager, tiny: Path, tmp_path: Path
) -> None:
    adapters = different_adapters(tmp_path)
    prompts = ["Write add_1(x).", "take", "7 times 8"]
    asked = {"model": str(tiny), "adapters": adapters, "prompts": prompts, "max_tokens": 5}
    done = subprocess.run(
        [sys.executable, "-c", REFERENCE, json.dumps(asked)],
        capture_output=True,
        text=True,
        timeout=500,
        check=True,
    )
    expected = json.loads(done.stdout.splitlines()[-1])
    assert len({tuple(v) for v in expected.values()}) > 9

    choose = random.Random(3)
    requests = [(choose.choice(list(adapters)), choose.choice(prompts)) for _ in range(100)]
    assert {name for name, _ in requests} == set(adapters)

    def one(request: tuple[str, str]) -> tuple[int, ...]:
        name, prompt = request
        if prompt == "take":
            # Somebody who goes away in the middle leaves nothing behind.
            with contextlib.closing(pool.stream(str(tiny), adapters[name], chat("x", 50))) as parts:
                next(parts)
        return pool.generate(str(tiny), adapters[name], chat(prompt, 5)).tokens

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(one, requests))
    for (name, prompt), tokens in zip(requests, answers, strict=True):
        assert list(tokens) == expected[f"{name}|{prompt}"], (name, prompt)
    status = pool.get_status()
    assert status.loads == 1
    assert len(status.models[0].adapters) == 5
    left = sum(prompt == "take" for _, prompt in requests)
    assert status.models[0].hits == 100 + left

    words = ["mlx_lm", "generate", "--model", str(tiny), "--adapter-path", str(adapters["dora"])]
    words += ["--prompt", "take", "--max-tokens", "5", "--temp", "0"]
    said = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, timeout=200, check=True
    ).stdout
    made = pool.generate(str(tiny), adapters["dora"], chat("take", 5)).text
    assert said.split("==========")[1] == f"\n{made}\n", "the command itself"


def test_a_peft_adapter_is_converted_and_answers_the_same(
    pool: ModelPoolManager, tiny: Path, tmp_path: Path
) -> None:
    ours = make_adapter(tmp_path / "mlx", seed=11)
    theirs = make_peft_adapter(tmp_path / "peft", seed=11)

    assert pool.get_model_with_adapter(str(tiny), theirs).adapter_info is not None
    one = pool.generate(str(tiny), ours, chat("add"))
    assert one.tokens == pool.generate(str(tiny), theirs, chat("add")).tokens
    assert one.tokens != pool.generate(str(tiny), None, chat("add")).tokens


def test_adapters_cost_what_they_hold_and_the_base_is_there_once(
    tiny: Path, tmp_path: Path
) -> None:
    with ModelPoolManager(ENGINE, Folders(), log_dir=tmp_path) as pool:
        pool.get_model(str(tiny))
        base = pool.get_status().models[0].mlx_bytes
        sizes = 0
        for seed in range(8):
            # Pages and MLX's rounding would hide in adapters of a few kilobytes.
            folder = make_adapter(tmp_path / str(seed), seed=seed, rank=32, blocks=(0, 1, 2))
            info = pool.get_model_with_adapter(str(tiny), folder).adapter_info
            assert info is not None
            pool.generate(str(tiny), folder, chat("a", 2))
            sizes += info.size_bytes
        after = pool.get_status().models[0]
        assert len(after.adapters) == 8
        assert sizes <= after.mlx_bytes - base <= 1.3 * sizes
        assert len({model.pid for model in pool.get_status().models}) == 1


def test_a_retrained_adapter_and_a_moved_link_are_never_stale(
    pool: ModelPoolManager, tiny: Path, tmp_path: Path
) -> None:
    first, second = make_adapter(tmp_path / "1", seed=21), make_adapter(tmp_path / "2", seed=22)
    third = make_adapter(tmp_path / "3", seed=23)
    link = tmp_path / "latest"
    link.symlink_to(first)
    one = pool.generate(str(tiny), link, chat("add")).tokens
    link.unlink()
    link.symlink_to(second)
    two = pool.generate(str(tiny), link, chat("add")).tokens
    assert one != two == pool.generate(str(tiny), second, chat("add")).tokens

    info = pool.validate_adapter_path(first, str(tiny))
    make_adapter(first, seed=23)  # trained again in place
    three = pool.generate(str(tiny), first, chat("add")).tokens
    assert three not in (one, two)
    assert three == pool.generate(str(tiny), third, chat("add")).tokens
    status = pool.get_status()
    assert info.content_hash not in [a.content_hash for a in status.models[0].adapters]

    # What is there already under another name takes the place of the old one too.
    info = pool.validate_adapter_path(first, str(tiny))
    make_adapter(first, seed=22)
    assert pool.generate(str(tiny), first, chat("add")).tokens == two
    hashes = [a.content_hash for a in pool.get_status().models[0].adapters]
    assert info.content_hash not in hashes
    assert len(hashes) == len(set(hashes))
