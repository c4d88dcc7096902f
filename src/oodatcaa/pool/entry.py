"""One base model of the pool: its child, the adapters on it, who uses it, what it holds."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from oodatcaa.pool.member import LOAD_SECONDS, Member
from oodatcaa.pool.records import AdapterInfo, AdapterUse, ModelUse, PlacedBase, pool_key

RESERVED_IN = 32_000_000
"""Reservations grow in steps of this many bytes, so that they are few."""


class Places(Protocol):
    def place(self, model_id: str) -> PlacedBase:
        """Where a model lies, and its fingerprint now; OodatcaaError `model.*` otherwise."""


class Memory(Protocol):
    def reserve(self, size: int, limit: int, label: str) -> AbstractContextManager[Any]:
        """Hold memory beside everybody else on this machine; RefusedError when it is taken."""


@dataclass
class OnBase:
    info: AdapterInfo
    bytes: int
    hits: int = 0
    used: float = field(default_factory=time.monotonic)


@dataclass
class Entry:
    """`users` counts who waits for it or uses it; above 0 it is never evicted. `turn` is held by
    the one whose request the child works on."""

    base: PlacedBase
    member: Member | None = None
    error: BaseException | None = None
    ready: threading.Event = field(default_factory=threading.Event)
    turn: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0
    hits: int = 0
    used: float = field(default_factory=time.monotonic)
    adapters: dict[str, OnBase] = field(default_factory=dict)
    mlx_bytes: int = 0
    base_bytes: int = 0
    prompts: int = 0
    prompt_bytes: int = 0
    load_seconds: float = 0.0
    reserved: int = 0
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def child(self) -> Member:
        assert self.member is not None
        return self.member

    @property
    def alive(self) -> bool:
        return self.member is None or self.member.alive

    def bytes(self) -> int:
        """What it holds now: on a GPU MLX's own count can be more than the process shows."""
        if self.member is None:
            return self.reserved
        return max(self.member.tree_bytes(), self.mlx_bytes + self.prompt_bytes)

    def count(self, memory: Mapping[str, Any]) -> None:
        """What the child says that it holds."""
        self.prompts, self.prompt_bytes = int(memory["prompts"]), int(memory["prompt_bytes"])
        self.mlx_bytes = int(memory["active"]) - self.prompt_bytes

    def reserve(self, needed: int, limit: int, memory: Memory) -> None:
        """Hold at least `needed` bytes. Raises RefusedError when others hold too much."""
        missing = needed - self.reserved
        if missing <= 0:
            return
        step = min(-(-missing // RESERVED_IN) * RESERVED_IN, max(missing, limit - self.reserved))
        self.stack.enter_context(memory.reserve(step, limit, f"serving {self.base.name}"))
        self.reserved += step

    def take_off(self, adapter: OnBase) -> None:
        """Have the child forget an adapter and what it read. The caller has the turn, or nobody
        uses the entry."""
        self.adapters.pop(adapter.info.content_hash, None)
        if self.alive:
            request = {"op": "drop", "hash": adapter.info.content_hash}
            self.count(self.child.ask(request, LOAD_SECONDS))

    def forget_prompts(self, size: int) -> None:
        """Have the child forget `size` bytes of read prompts or a little more, least recently
        used first. The caller has the turn, or nobody uses the entry."""
        left = max(0, self.prompt_bytes - size)
        self.prompts, self.prompt_bytes = 0, 0
        if self.alive:
            self.count(self.child.ask({"op": "shrink", "prompt_cache_bytes": left}, LOAD_SECONDS))

    def close(self) -> None:
        if self.member is not None:
            self.member.close()
        self.adapters.clear()
        self.stack.close()
        self.reserved = 0

    def use(self) -> ModelUse:
        """For the status. Values of other threads may be a moment old."""
        now = time.monotonic()
        on = sorted(self.adapters.values(), key=lambda adapter: -adapter.used)
        return ModelUse(
            model_id=self.base.name,
            sha256=self.base.sha256,
            pid=self.child.pid,
            bytes=self.bytes(),
            mlx_bytes=self.mlx_bytes,
            base_bytes=self.base_bytes,
            prompts=self.prompts,
            prompt_bytes=self.prompt_bytes,
            load_seconds=self.load_seconds,
            hits=self.hits,
            in_use=self.users,
            idle_seconds=now - self.used,
            adapters=tuple(
                AdapterUse(
                    key=pool_key(self.base.name, adapter.info.adapter_path),
                    adapter_path=adapter.info.adapter_path,
                    content_hash=adapter.info.content_hash,
                    rank=adapter.info.rank,
                    bytes=adapter.bytes,
                    hits=adapter.hits,
                    idle_seconds=now - adapter.used,
                )
                for adapter in on
            ),
        )
