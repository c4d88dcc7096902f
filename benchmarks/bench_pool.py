"""The model pool: what adapters cost in memory, whether answers are stock's, how fast they come.

The 135M demo model and 8 random adapters. Memory beside 8 separate loads; 100 random requests from
4 threads beside what `mlx_lm.generate --adapter-path` does; `oodatcaa serve` beside
`mlx_lm.server`, asked in turn by the same client. Prints Markdown; `--write` puts it into
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from page import measured_with, write_section
from pool_sides import Asked, Server, Timed, ours, random_adapter, stock

from oodatcaa.pool.manager import ModelPoolManager
from oodatcaa.pool.records import Ask, PlacedBase
from oodatcaa.training.mlx.infer import ENGINE
from oodatcaa.training.models import ModelStore

SIDES = Path(__file__).with_name("pool_sides.py")
ADAPTERS, RANK, LAYERS = 8, 16, 16
REQUESTS, THREADS, TOKENS = 100, 4, 10
ALLOWED = 1.3
TOPICS = ("rain", "a clock", "two rivers", "a lost key", "the moon", "a market", "an old train")


class Demo:
    """`pool.Places` of one model."""

    def __init__(self) -> None:
        found = ModelStore().resolve("demo")
        self.title = found.title
        self.path, self.sha256 = found.path_or_hub, found.sha256

    def place(self, model_id: str) -> PlacedBase:
        return PlacedBase(name=model_id, path=self.path, sha256=self.sha256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=3, help="requests of each kind to each server"
    )
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-pool-") as name:
        text = measure(Path(name).resolve(), asked.rounds)
    print(text)
    if asked.write:
        write_section("bench-pool", text)


def measure(root: Path, rounds: int) -> str:
    header = measured_with("make bench-pool", ["mlx", "mlx-lm", "starlette", "uvicorn", "openai"])
    demo = Demo()
    folders = [
        random_adapter(root / f"a{n}", Path(demo.path), seed=n, rank=RANK, layers=LAYERS)
        for n in range(ADAPTERS)
    ]
    parts = [head(header, demo)]
    for part in (memory, equality, partial(speed, rounds=rounds)):
        parts.append(part(demo, folders, root))
        print(parts[-1], file=sys.stderr, flush=True)
    return "\n\n".join(parts)


def head(header: str, demo: Demo) -> str:
    return f"""## The model pool

{header}

{demo.title}; {ADAPTERS} random adapters of rank {RANK} on all seven matrices of {LAYERS} blocks."""


@dataclass(frozen=True)
class Held:
    """Bytes: MLX's active memory, and the process's own."""

    mlx: int
    process: int


def memory(demo: Demo, folders: list[Path], root: Path) -> str:
    with ModelPoolManager(ENGINE, demo, log_dir=root, prompt_cache_bytes=0) as pool:
        base, after, sizes = pooled(pool, folders)
    apart = [child("load", demo, folder) for folder in folders]
    separate = Held(sum(one["mlx"] for one in apart), sum(one["process"] for one in apart))
    by_mlx, resident = [
        f"**{ratio:.2f}** ({'met' if ratio <= ALLOWED else 'missed'})"
        for ratio in ((after.mlx - base.mlx) / sizes, (after.process - base.process) / sizes)
    ]
    rows = [
        ("the base alone", base),
        (f"the base and {ADAPTERS} adapters, one process", after),
        (f"{ADAPTERS} separate `mlx_lm.load`, added up", separate),
    ]
    table = "\n".join(
        f"| {name} | {held.mlx / 1e6:.1f} MB | {held.process / 1e6:.1f} MB |" for name, held in rows
    )
    return f"""### Memory

The adapters' own size is {sizes / 1e6:.1f} MB. Each was used for one answer before the reading. \
The pool kept no KV caches of prompts that it had read.

| what is loaded | MLX's active memory | resident memory |
| --- | ---: | ---: |
{table}

Beyond the base, as a multiple of the adapters' own size (goal: at most {ALLOWED}): \
{by_mlx} by MLX's counter, {resident} by resident memory (what loading left free is used again)."""


def pooled(pool: ModelPoolManager, folders: list[Path]) -> tuple[Held, Held, int]:
    """(base, base with adapters, bytes of the adapters' tensors)."""
    ask = chat("Write about rain.", 4)
    # Twice: the first answers leave behind what every process keeps (buffers, compiled code).
    for _ in range(2):
        pool.generate("demo", None, ask)
    base, sizes = read(pool), 0
    for folder in folders:
        info = pool.get_model_with_adapter("demo", folder).adapter_info
        assert info is not None
        sizes += info.size_bytes
        pool.generate("demo", folder, ask)
    return base, read(pool), sizes


def read(pool: ModelPoolManager) -> Held:
    import psutil

    use = pool.get_status().models[0]
    return Held(use.mlx_bytes, psutil.Process(use.pid).memory_info().rss)


def child(side: str, demo: Demo, *words: object) -> dict[str, Any]:
    """What a process of its own says, as JSON on its last line."""
    argv = [sys.executable, str(SIDES), side, demo.path, *map(str, words)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def chat(prompt: str, tokens: int) -> Ask:
    return Ask(messages=({"role": "user", "content": prompt},), max_tokens=tokens)


def equality(demo: Demo, folders: list[Path], root: Path) -> str:
    prompts = [f"The story of {topic}" for topic in TOPICS[:3]]
    expected: dict[str, list[int]] = {}
    for folder in folders:
        told = child("answers", demo, folder, TOKENS, json.dumps(prompts))
        expected |= {f"{folder.name}|{prompt}": tokens for prompt, tokens in told.items()}
    choose = random.Random(0)
    # Every adapter is among them, the rest is chance.
    wanted = [(f, choose.choice(prompts)) for f in folders]
    wanted += [
        (choose.choice(folders), choose.choice(prompts)) for _ in range(REQUESTS - len(folders))
    ]
    choose.shuffle(wanted)
    with (
        ModelPoolManager(ENGINE, demo, log_dir=root) as pool,
        ThreadPoolExecutor(THREADS) as threads,
    ):

        def one(request: tuple[Path, str]) -> bool:
            folder, prompt = request
            made = pool.generate("demo", folder, Ask(prompt=prompt, max_tokens=TOKENS)).tokens
            return list(made) == expected[f"{folder.name}|{prompt}"]

        equal = list(threads.map(one, wanted))
        loads = pool.get_status().loads
    different = len({tuple(tokens) for tokens in expected.values()})
    return f"""### Answers

{REQUESTS} requests in random order from {THREADS} threads, {TOKENS} tokens each, greedy: \
**{sum(equal)} of {len(equal)}** equal what `mlx_lm.generate --adapter-path` makes, token by token \
(goal: all). The base was loaded {loads} time(s); the {len(expected)} pairs of adapter and prompt \
have {different} different answers."""


def speed(demo: Demo, folders: list[Path], root: Path, *, rounds: int) -> str:
    kinds = {kind: {"ours": list[Timed](), "stock": list[Timed]()} for kind in KINDS}
    with ours(folders, root) as mine, stock(demo.path, folders[0], root) as theirs:
        servers: dict[str, Server] = {"ours": mine, "stock": theirs}
        for server in servers.values():
            for _ in range(2):
                server.ask(Asked("Write about warmth.", folders[0]))
        for number in range(rounds):
            for kind, make in KINDS.items():
                order = list(servers) if number % 2 else list(servers)[::-1]
                for name in order:
                    kinds[kind][name].append(servers[name].ask(make(folders, number)))
    rows = [_row(kind, who, times) for kind, found in kinds.items() for who, times in found.items()]
    table = "\n".join(rows)
    return f"""### Speed, beside `mlx_lm.server`

`oodatcaa serve` and stock `mlx_lm.server`, both running, asked in turn by the official `openai` \
client with streaming, greedily; the median of {rounds} requests and the range. The machine's load \
after it was {os.getloadavg()[1]:.1f} (two servers and a client make about {os.cpu_count()}).

| request | server | first token, ms | tokens/s |
| --- | --- | ---: | ---: |
{table}

Nothing of a new text was read before. Chat messages share what the chat template puts before \
them: both servers keep the KV caches of prompts that they have read and go on from there, the \
pool for each adapter apart. The stock server holds one adapter at a time: for another one \
it loads the base again; the pool has all of them on one base."""


def text(folders: list[Path], number: int) -> Asked:
    topic = TOPICS[number % len(TOPICS)]
    return Asked(f"{topic.title()} was the beginning of story {number}", folders[0], chat=False)


def fresh(folders: list[Path], number: int) -> Asked:
    return Asked(f"Write a story number {number} about {TOPICS[number % len(TOPICS)]}.", folders[0])


def again(folders: list[Path], _: int) -> Asked:
    return Asked("Write about warmth.", folders[0])


def turned(folders: list[Path], number: int) -> Asked:
    return Asked(f"Describe {TOPICS[number % len(TOPICS)]}.", folders[1 + number % 7])


KINDS = {
    "completion of a new text": text,
    "chat, a new message": fresh,
    "chat, the same message": again,
    "chat, another adapter each time": turned,
}


def _row(kind: str, who: str, times: list[Timed]) -> str:
    first = [1000 * one.first for one in times]
    rate = [one.rate for one in times]
    name = "oodatcaa" if who == "ours" else "mlx_lm.server"
    return (
        f"| {kind} | {name} | {statistics.median(first):.0f} ({min(first):.0f}-{max(first):.0f}) | "
        f"{statistics.median(rate):.1f} ({min(rate):.1f}-{max(rate):.1f}) |"
    )


if __name__ == "__main__":
    main()
