"""The KV caches of prompts that were read, so that what begins alike is not read again.

mlx-lm's own `LRUPromptCache` serves one adapter at a time: it can not forget one of many, and
counts a cache as used when it was put in, not when it was asked for.
"""

from __future__ import annotations

import copy
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import eq
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache, can_trim_prompt_cache, make_prompt_cache

HALF = 2
"""Bytes of a half-precision value."""


@dataclass(frozen=True, eq=False)
class _Kept:
    adapter: str | None
    tokens: array[int]
    cache: list[Any]
    bytes: int

    def shared_with(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` this cache can stand for."""
        same = sum(1 for _ in takewhile(bool, map(eq, self.tokens, tokens)))
        whole = same == len(self.tokens)
        return same if whole or can_trim_prompt_cache(self.cache) else 0


class Prompts:
    """At most `limit` bytes of caches, least recently used first to leave; 0 keeps none.

    Each belongs to one adapter (None: the bare base). No two requests ever write to one cache.
    """

    def __init__(self, network: Any, limit: int) -> None:
        self.network, self.limit = network, limit
        self._kept: list[_Kept] = []

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def take(self, adapter: str | None, tokens: Sequence[int]) -> tuple[list[Any], int]:
        """A cache for reading `tokens`, and how many of them are in it: never the last one, whose
        logits are what an answer begins with."""
        shared, _, best = max(
            (
                (one.shared_with(tokens[:-1]), age, one)
                for age, one in enumerate(self._kept)
                if one.adapter == adapter
            ),
            default=(0, 0, None),
        )
        if best is not None and shared:
            self._kept.remove(best)
            if shared == len(best.tokens) and can_trim_prompt_cache(best.cache):
                return best.cache, shared
            self._kept.append(best)
            if (cache := _beginning(best, shared)) is not None:
                return cache, shared
        return make_prompt_cache(self.network), 0

    def keep(self, adapter: str | None, tokens: Sequence[int], cache: list[Any]) -> None:
        """`cache` holds `tokens`, and nobody else writes to it any more."""
        if {one.offset for one in cache if hasattr(one, "offset")} - {len(tokens)}:
            return
        size = sum(one.nbytes for one in cache)
        if size > self.limit:
            return
        # What logits do not depend on is not computed yet, and would keep all before it.
        mx.eval([one.state for one in cache])
        new = _Kept(adapter, array("q", tokens), cache, size)
        if can_trim_prompt_cache(cache):
            self._kept = [one for one in self._kept if not _stands_for(new, one)]
        self._kept.append(new)
        self.shrink(self.limit)

    def drop(self, adapter: str | None) -> None:
        self._kept = [one for one in self._kept if one.adapter != adapter]

    def shrink(self, size: int) -> None:
        """Hold at most `size` bytes."""
        while self._kept and self.bytes > size:
            del self._kept[0]


def _stands_for(new: _Kept, old: _Kept) -> bool:
    return old.adapter == new.adapter and new.tokens[: len(old.tokens)] == old.tokens


def _beginning(kept: _Kept, length: int) -> list[Any] | None:
    """A copy of the first `length` tokens; None when a layer can not go back that far. MLX's
    arrays are values: what is not written to is shared."""
    cache = copy.deepcopy(kept.cache)
    over = len(kept.tokens) - length
    if over and any(one.trim(over) != over for one in cache):
        return None
    for one in cache:
        if type(one) is KVCache:
            # Written to, it would be copied as far as the kept one reaches.
            one.keys, one.values = one.keys[..., :length, :], one.values[..., :length, :]
    return cache


def value_bytes(network: Any) -> int:
    """Bytes of one key or value as the model caches it. Nothing is computed for it."""
    cache = make_prompt_cache(network)
    network(mx.array([[0]]), cache=cache)
    keys = [getattr(one, "keys", None) for one in cache]
    return max((one.itemsize for one in keys if one is not None), default=HALF)
