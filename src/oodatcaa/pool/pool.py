"""A pool of loaded (base model, adapter) pairs under one memory limit. Never imports mlx.

Each pair lives in its own child process, is loaded at its first request, and is unloaded, least
recently used first, when another one needs the room.
"""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from oodatcaa.domain.base import Record
from oodatcaa.domain.training import GB, InferenceProbe
from oodatcaa.errors import RefusedError
from oodatcaa.pool.adapters import check_adapter
from oodatcaa.pool.member import Member

LOAD_SECONDS = 600.0
ANSWER_SECONDS = 600.0


class PoolMember(Record):
    """One loaded pair. `key` is `model::adapter`, or `model` for the bare base."""

    key: str
    pid: int
    load_seconds: float
    memory_bytes: int
    idle_seconds: float
    answered: int


class PoolStatus(Record):
    """Most recently used first."""

    members: tuple[PoolMember, ...]
    memory_bytes: int
    memory_limit_bytes: int
    evicted: int


def pool_key(model: str, adapter: str | None) -> str:
    return model if adapter is None else f"{model}::{adapter}"


class Pool:
    """Answers prompts with any adapter on any base that fits the memory limit.

    `engine` is the entry point `module:function` that loads a pair inside the child: whoever wires
    the pool to a backend knows it, the pool does not. Use as a context manager, or `close()`.
    Calls from several threads are answered one after the other.
    """

    def __init__(
        self, engine: str, *, memory_limit_bytes: int = 16 * GB, log_dir: Path | None = None
    ) -> None:
        self.engine = engine
        self.limit = memory_limit_bytes
        self.evicted = 0
        self._members: dict[str, Member] = {}
        self._turn = threading.Lock()
        self._logs = log_dir or Path(tempfile.mkdtemp(prefix="oodatcaa-pool-"))

    def generate(
        self,
        model: str,
        adapter: str | None,
        prompt: str,
        *,
        max_tokens: int = 128,
        temperature: float = 0.0,
        timeout: float = ANSWER_SECONDS,
    ) -> InferenceProbe:
        """Answer one chat message; loads the pair when needed.

        Raises OodatcaaError `pool.adapter` (all problems of the folder), `pool.memory` (does not
        fit even alone), `pool.timeout`, `pool.died`, and what loading raises (`model.*`).
        """
        with self._turn:
            member = self._member(model, adapter)
            request = {"prompt": prompt, "max_tokens": max_tokens, "temperature": temperature}
            try:
                answer = member.ask({"op": "generate", **request}, timeout)
            finally:
                self._keep_limit(member)
            return InferenceProbe.model_validate(answer["probe"])

    def status(self) -> PoolStatus:
        """What is loaded now; members that died meanwhile are left out."""
        with self._turn:
            self._drop_dead()
            now = time.monotonic()
            members = tuple(
                PoolMember(
                    key=m.key,
                    pid=m.pid,
                    load_seconds=m.load_seconds,
                    memory_bytes=m.memory_bytes(),
                    idle_seconds=now - m.used,
                    answered=m.answered,
                )
                for m in sorted(self._members.values(), key=lambda m: -m.used)
            )
        return PoolStatus(
            members=members,
            memory_bytes=sum(m.memory_bytes for m in members),
            memory_limit_bytes=self.limit,
            evicted=self.evicted,
        )

    def close(self) -> None:
        """Unload everything; the pool can be used again afterwards."""
        with self._turn:
            for key in list(self._members):
                self._members.pop(key).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _member(self, model: str, adapter: str | None) -> Member:
        self._drop_dead()
        key = pool_key(model, adapter)
        if key in self._members:
            return self._members[key]
        if adapter is not None:
            check_adapter(Path(adapter), model)
        self._make_room(_weight_bytes(model), key)
        options = {"model": model, "adapter_dir": adapter, "memory_limit_bytes": self.limit}
        log = self._logs / "pool.log"
        member = Member(key, self.engine, options, log, LOAD_SECONDS)
        self._members[key] = member
        return member

    def _make_room(self, needed: int, key: str) -> None:
        """Evict until `needed` more bytes fit; refuse at once what can never fit."""
        if needed > self.limit:
            raise self._too_large(key, needed)
        while self._members and self._used() + needed > self.limit:
            self._evict_oldest(None)

    def _keep_limit(self, current: Member) -> None:
        """After loading and answering: measured memory counts, not the estimate before."""
        self._drop_dead()
        while len(self._members) > 1 and self._used() > self.limit:
            self._evict_oldest(current)
        if (used := self._used()) > self.limit:
            self._members.pop(current.key).close()
            raise self._too_large(current.key, used)

    def _evict_oldest(self, keep: Member | None) -> None:
        oldest = min((m for m in self._members.values() if m is not keep), key=lambda m: m.used)
        self._members.pop(oldest.key).close()
        self.evicted += 1

    def _drop_dead(self) -> None:
        for key in [k for k, m in self._members.items() if not m.alive]:
            self._members.pop(key).close()

    def _used(self) -> int:
        return sum(m.memory_bytes() for m in self._members.values())

    def _too_large(self, key: str, needed: int) -> RefusedError:
        return RefusedError(
            "pool.memory",
            f"{key} needs {needed / 1e9:.2f} GB, the pool's limit is {self.limit / 1e9:.2f} GB",
            hint="raise the limit, or serve a smaller or more heavily quantised model",
        )


def _weight_bytes(model: str) -> int:
    """What loading reads at least; 0 for a hub name, whose size is known once it is loaded."""
    return sum(f.stat().st_size for f in Path(model).glob("model*.safetensors"))
