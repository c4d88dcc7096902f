"""The sides of bench_pool: random adapters, stock mlx-lm in processes of its own, both servers.

`pool_sides.py load MODEL ADAPTER` and `pool_sides.py answers MODEL ADAPTER TOKENS PROMPTS` print
one line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ANSWER = 32
"""Tokens of a timed answer."""
OURS = ("MKL_", "OMP_", "MALLOC_", "OODATCAA_")
KEYS = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)


def random_adapter(folder: Path, base: Path, *, seed: int, rank: int, layers: int) -> Path:
    """mlx-lm's dialect, on the last `layers` blocks; strong enough to change what is said."""
    import numpy as np
    from safetensors.numpy import save_file

    from oodatcaa.pool.base_shape import read_base

    shape, chance = read_base(base), np.random.default_rng(seed)
    tensors = {}
    for block in range(shape.blocks - layers, shape.blocks):
        for key in KEYS:
            name = f"model.layers.{block}.{key}"
            outputs, inputs = shape.layers[name]
            a = chance.standard_normal((inputs, rank)) * inputs**-0.5
            b = chance.standard_normal((rank, outputs)) * 0.02
            tensors[f"{name}.lora_a"] = a.astype(np.float32)
            tensors[f"{name}.lora_b"] = b.astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapters.safetensors")
    config = {
        "model": str(base),
        "fine_tune_type": "lora",
        "num_layers": layers,
        "lora_parameters": {"rank": rank, "scale": 2.0, "dropout": 0.0, "keys": list(KEYS)},
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Asked:
    """A chat message, or with `chat` false a text to go on with."""

    prompt: str
    adapter: Path
    chat: bool = True


@dataclass(frozen=True)
class Timed:
    """Seconds to the first text, and tokens per second after it."""

    first: float
    rate: float


class Server:
    """One server, asked as any OpenAI client asks."""

    def __init__(self, address: str, *, stock: str = "") -> None:
        from openai import OpenAI

        self.stock = stock
        self.client = OpenAI(base_url=f"{address}/v1", api_key="-", max_retries=0, timeout=600)

    def ask(self, asked: Asked) -> Timed:
        # mlx_lm.server takes the adapter of a request in a field of its own, and only beside a
        # model that is named: beside "default_model" it keeps the one it was started with.
        extra = {"adapters": str(asked.adapter)} if self.stock else None
        options: dict[str, Any] = {
            "model": self.stock or f"demo::{asked.adapter.name}",
            "max_tokens": ANSWER,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "extra_body": extra,
        }
        began = time.perf_counter()
        if asked.chat:
            messages: Any = [{"role": "user", "content": asked.prompt}]
            events: Any = self.client.chat.completions.create(messages=messages, **options)
        else:
            events = self.client.completions.create(prompt=asked.prompt, **options)
        return _timed(events, began)


def _timed(events: Any, began: float) -> Timed:
    first = last = tokens = 0.0
    for event in events:
        if event.choices:
            choice = event.choices[0]
            if getattr(choice, "text", "") or getattr(
                getattr(choice, "delta", None), "content", ""
            ):
                last = time.perf_counter()
                first = first or last
        if event.usage is not None:
            tokens = event.usage.completion_tokens
    return Timed(first - began, (tokens - 1) / (last - first))


@contextlib.contextmanager
def ours(folders: list[Path], root: Path) -> Iterator[Server]:
    port = _free_port()
    argv = [sys.executable, "-m", "oodatcaa", "serve", "--model", "demo", "--port", str(port)]
    for folder in folders:
        argv += ["--adapter", f"{folder.name}={folder}"]
    with _running(argv, port, root / "ours.log") as address:
        yield Server(address)


@contextlib.contextmanager
def stock(model: str, adapter: Path, root: Path) -> Iterator[Server]:
    port = _free_port()
    argv = [sys.executable, "-m", "mlx_lm", "server", "--model", model, "--port", str(port)]
    argv += ["--adapter-path", str(adapter), "--log-level", "WARNING"]
    with _running(argv, port, root / "stock.log") as address:
        yield Server(address, stock=model)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def _running(argv: list[str], port: int, log: Path) -> Iterator[str]:
    """A server as its user starts it, outside of any project, until the block ends."""
    address = f"http://127.0.0.1:{port}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(OURS)}
    with log.open("wb") as out:
        running = subprocess.Popen(argv, stdout=out, stderr=out, env=environment, cwd=log.parent)
        try:
            _wait(f"{address}/health", running, log)
            yield address
        finally:
            running.terminate()
            running.wait(30)


def _wait(url: str, running: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        if running.poll() is not None:
            break
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise SystemExit(f"no answer from {url}:\n{log.read_text()[-2000:]}")


def load(model: str, adapter: str) -> dict[str, int]:
    """A separate load and one answer, as pooled adapters give one."""
    import mlx.core as mx
    import psutil

    network, tokenizer = _loaded(model, adapter)
    for _ in range(2):
        _answer(network, tokenizer, _chat(tokenizer, "Write about rain."), 4)
    mx.clear_cache()
    return {"mlx": mx.get_active_memory(), "process": psutil.Process().memory_info().rss}


def answers(model: str, adapter: str, tokens: str, prompts: str) -> dict[str, list[int]]:
    """What `mlx_lm.generate --adapter-path --ignore-chat-template` does, with the token ids that it
    does not print."""
    network, tokenizer = _loaded(model, adapter)
    return {p: _answer(network, tokenizer, p, int(tokens)) for p in json.loads(prompts)}


def _loaded(model: str, adapter: str) -> Any:
    from mlx_lm import load as load_model

    return load_model(model, adapter_path=adapter)


def _chat(tokenizer: Any, prompt: str) -> str:
    messages = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _answer(network: Any, tokenizer: Any, prompt: str, tokens: int) -> list[int]:
    from mlx_lm import stream_generate

    replies = stream_generate(network, tokenizer, prompt, max_tokens=tokens)
    return [int(reply.token) for reply in replies]


if __name__ == "__main__":
    print(json.dumps({"load": load, "answers": answers}[sys.argv[1]](*sys.argv[2:])))
