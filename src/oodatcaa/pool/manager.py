"""The model pool: one copy of each base model, any number of adapters on it. Never imports mlx.

A base model lives in a child process of its own, is loaded at its first request and unloaded when
others need the room, least recently used first. Adapters are put on a loaded base and exchanged
per request. People name them `model_id::adapter_path`; inside, what counts is the base's
fingerprint and the adapter's content, so a retrained adapter is never mistaken for the old one.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from oodatcaa.domain.base import GB
from oodatcaa.errors import OodatcaaError, RefusedError
from oodatcaa.pool.base_shape import read_base
from oodatcaa.pool.dialects import CONFIG, MLX_WEIGHTS, PEFT_WEIGHTS
from oodatcaa.pool.entry import Entry, Memory, OnBase, Places
from oodatcaa.pool.member import LOAD_SECONDS, Member
from oodatcaa.pool.records import (
    AdapterInfo,
    Answer,
    Ask,
    LoadedModel,
    Piece,
    PlacedBase,
    PoolStatus,
    Score,
    pool_key,
)
from oodatcaa.pool.room import Room
from oodatcaa.pool.validate import validate_adapter

ANSWER_SECONDS = 600.0
PROMPT_SHARE = 8
"""One part in this many of the memory limit is for read prompts, when nothing else is said."""


class ModelPoolManager:
    """Answers requests with any adapter on any base that fits the memory limit.

    `engine` is the entry point `module:function` that loads a base inside the child: whoever
    wires the pool to a backend knows it, the pool does not. Any number of threads may call.
    Requests for one base are answered one after the other, those for different bases at once.
    Use as a context manager, or `close()`.

    `prompt_cache_bytes` bounds the KV caches of prompts that are kept, so that requests of one
    adapter that begin alike read the beginning once; they leave before any adapter does. By
    default an eighth of the memory limit, 0 keeps none.

    Errors: `pool.adapter` (everything wrong with an adapter), `pool.not_text`, `pool.memory`
    (beyond the limit), `pool.busy`, `pool.timeout`, `pool.died`, `pool.context`, `pool.request`,
    and `model.*` from finding and loading a model.
    """

    def __init__(
        self,
        engine: str,
        places: Places,
        *,
        memory_limit_bytes: int = 16 * GB,
        memory: Memory | None = None,
        prompt_cache_bytes: int | None = None,
        log_dir: Path | None = None,
    ) -> None:
        self.engine, self.places = engine, places
        self.limit = memory_limit_bytes
        if prompt_cache_bytes is None:
            prompt_cache_bytes = memory_limit_bytes // PROMPT_SHARE
        self._room = Room(memory_limit_bytes, memory, prompt_cache_bytes)
        self._entries, self._lock = self._room.entries, self._room.lock
        self._infos: dict[tuple[str, str], tuple[object, AdapterInfo]] = {}
        self._loads = 0
        self._logs = log_dir or Path(tempfile.mkdtemp(prefix="oodatcaa-pool-"))

    def validate_adapter_path(self, path: str | Path, base: str) -> AdapterInfo:
        """What the adapter is. Raises `pool.adapter` with all its mismatches at once."""
        return self._info(Path(path), self.places.place(base))

    def get_model(self, model_id: str) -> LoadedModel:
        """The bare base, loaded when it was not."""
        with self._use(model_id, None) as (_, loaded):
            return loaded

    def get_model_with_adapter(self, model_id: str, adapter_path: str | Path) -> LoadedModel:
        """The base with this adapter on it; the base is loaded only when it was not."""
        with self._use(model_id, adapter_path) as (_, loaded):
            return loaded

    def stream(
        self,
        model_id: str,
        adapter_path: str | Path | None,
        ask: Ask,
        *,
        timeout: float = ANSWER_SECONDS,
    ) -> Generator[Piece | Answer, None, None]:
        """Pieces of text as they are made, then the whole Answer. Close it to stop early."""
        with self._use(model_id, adapter_path) as (entry, loaded):
            request = {
                "op": "generate",
                "ask": ask.model_dump(mode="json"),
                "adapter": _hash(loaded),
            }
            with contextlib.closing(entry.child.stream(request, timeout)) as lines:
                for line in lines:
                    if "piece" in line:
                        yield Piece.model_validate(line["piece"])
                    else:
                        yield Answer.model_validate(line["done"])

    def generate(
        self,
        model_id: str,
        adapter_path: str | Path | None,
        ask: Ask,
        *,
        timeout: float = ANSWER_SECONDS,
    ) -> Answer:
        """The whole answer at once."""
        answer = None
        for part in self.stream(model_id, adapter_path, ask, timeout=timeout):
            answer = part if isinstance(part, Answer) else None
        assert answer is not None  # a stream ends with its answer or an error
        return answer

    def score(
        self,
        model_id: str,
        adapter_path: str | Path | None,
        texts: list[Any],
        *,
        timeout: float = ANSWER_SECONDS,
    ) -> Score:
        """Loss and perplexity over texts: strings, or lists of chat messages."""
        with self._use(model_id, adapter_path) as (entry, loaded):
            request = {"op": "score", "texts": texts, "adapter": _hash(loaded)}
            return Score.model_validate(entry.child.ask(request, timeout))

    def get_status(self) -> PoolStatus:
        """What is loaded now, most recently used first; never waits for a request."""
        with self._lock:
            loaded = [e for e in self._entries.values() if e.ready.is_set() and e.alive]
            models = tuple(e.use() for e in sorted(loaded, key=lambda e: -e.used))
            return PoolStatus(
                models=models,
                bytes=sum(model.bytes for model in models),
                memory_limit_bytes=self.limit,
                prompt_bytes=sum(model.prompt_bytes for model in models),
                prompt_limit_bytes=self._room.prompt_limit,
                loads=self._loads,
                evicted_models=self._room.evicted_models,
                evicted_adapters=self._room.evicted_adapters,
            )

    def close(self) -> None:
        """Unload everything, also what is in use; the pool can be used again afterwards."""
        with self._lock:
            for key in list(self._entries):
                self._entries.pop(key).close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _use(
        self, model_id: str, adapter_path: str | Path | None
    ) -> Iterator[tuple[Entry, LoadedModel]]:
        """The child is this caller's alone, with the adapter on the base, while the block runs."""
        base = self.places.place(model_id)
        info = None if adapter_path is None else self._info(Path(adapter_path), base)
        entry = self._enter(base)
        try:
            if not entry.turn.acquire(timeout=ANSWER_SECONDS):
                raise OodatcaaError(
                    "pool.busy", f"{model_id} is busy with other requests", hint="try again later"
                )
            try:
                if info is not None:
                    self._put_on(entry, info)
                entry.used = time.monotonic()
                entry.hits += 1
                try:
                    yield entry, _loaded(model_id, base, info, entry)
                finally:
                    # Also after an answer that was left early or failed: what it read may be kept.
                    self._settle_or_unload(entry, info)
            finally:
                entry.turn.release()
        finally:
            self._leave(entry)

    def _enter(self, base: PlacedBase) -> Entry:
        """This base's entry, loaded by exactly one of those who ask for it at once."""
        with self._lock:
            entry = self._entries.get(base.sha256)
            if entry is not None and not entry.alive:
                self._room.forget(entry)
                entry = None
            mine = entry is None
            entry = entry or Entry(base)
            self._entries[base.sha256] = entry
            entry.users += 1
        try:
            if mine:
                self._load(entry)
            else:
                entry.ready.wait()
                if entry.error is not None:
                    raise entry.error
        except BaseException:
            self._leave(entry)
            raise
        return entry

    def _leave(self, entry: Entry) -> None:
        with self._lock:
            entry.users -= 1
            if not entry.alive or entry.error is not None:
                self._room.forget(entry)

    def _load(self, entry: Entry) -> None:
        folder = Path(entry.base.path)
        try:
            read_base(folder)
            self._room.make(entry, sum(f.stat().st_size for f in folder.glob("model*.safetensors")))
            options = {
                "model": str(folder),
                "memory_limit_bytes": self.limit,
                "prompt_cache_bytes": self._room.prompt_limit,
                "folder": str(self._logs),
            }
            log = self._logs / "pool.log"
            entry.member = Member(entry.base.name, self.engine, options, log, LOAD_SECONDS)
            entry.count(entry.member.loaded)
            entry.base_bytes = int(entry.member.loaded["base"])
            entry.load_seconds = float(entry.member.loaded["load_seconds"])
            self._loads += 1
            self._settle(entry, None)
        except BaseException as error:
            entry.error = error
            raise
        finally:
            entry.ready.set()

    def _put_on(self, entry: Entry, info: AdapterInfo) -> None:
        for old in list(entry.adapters.values()):
            # It was written anew in its place: nobody can ask for the old one there any more.
            if old.info.adapter_path == info.adapter_path and old.info != info:
                entry.take_off(old)
        found = entry.adapters.get(info.content_hash)
        if found is None:
            self._room.make(entry, info.size_bytes)
            request = {"op": "adapter", "info": info.model_dump(mode="json")}
            added = int(entry.child.ask(request, LOAD_SECONDS)["bytes"])
            found = entry.adapters[info.content_hash] = OnBase(info, added)
            entry.mlx_bytes += added
            if self._info(Path(info.adapter_path), entry.base) != info:
                # Written to since it was looked at: nobody knows which of the two was read.
                entry.take_off(found)
                raise _changed(info)
        found.used = time.monotonic()
        found.hits += 1

    def _settle(self, entry: Entry, info: AdapterInfo | None) -> None:
        """After loading and answering: measured memory counts, not the estimate before."""
        entry.count(entry.child.ask({"op": "memory"}, LOAD_SECONDS))
        self._room.bound_prompts(entry)
        self._room.make(entry, 0, info)

    def _settle_or_unload(self, entry: Entry, info: AdapterInfo | None) -> None:
        """The answer that was made is good; what outgrew the limit can not stay for another."""
        if entry.alive:
            try:
                self._settle(entry, info)
            except RefusedError:
                entry.child.close()

    def _info(self, path: Path, base: PlacedBase) -> AdapterInfo:
        """Read again only when one of the adapter's files changed."""
        key = (str(path.expanduser().resolve()), base.sha256)
        known = self._infos.get(key)
        if known is not None and known[0] == _signature(Path(key[0])):
            return known[1]
        before = _signature(Path(key[0]))
        info = validate_adapter(path, Path(base.path))
        if _signature(Path(key[0])) != before:
            raise _changed(info)
        self._infos[key] = (before, info)
        return info


def _signature(folder: Path) -> object:
    """Changes whenever a file of the adapter is written or replaced; the folder has no links."""
    found = []
    for name in (CONFIG, MLX_WEIGHTS, PEFT_WEIGHTS):
        with contextlib.suppress(OSError):
            s = (folder / name).stat()
            found.append((name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino))
    return tuple(found)


def _changed(info: AdapterInfo) -> OodatcaaError:
    return OodatcaaError(
        "pool.adapter_changed",
        f"{info.adapter_path} was written to while it was read",
        hint="ask again when it is finished",
    )


def _hash(loaded: LoadedModel) -> str | None:
    return None if loaded.adapter_info is None else loaded.adapter_info.content_hash


def _loaded(model_id: str, base: PlacedBase, info: AdapterInfo | None, entry: Entry) -> LoadedModel:
    return LoadedModel(
        model_id=model_id,
        base_path=base.path,
        base_sha256=base.sha256,
        adapter_path=info.adapter_path if info else None,
        adapter_info=info,
        pid=entry.child.pid,
        load_seconds=entry.load_seconds,
    )


__all__ = ["ModelPoolManager", "pool_key"]
