"""Memory for what the pool loads next: within the limit, at the cost of what is idle."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from oodatcaa.errors import RefusedError
from oodatcaa.pool.entry import RESERVED_IN, Entry, Memory, OnBase
from oodatcaa.pool.records import AdapterInfo


class FreeMemory:
    """`Memory` for a pool that is alone on its machine."""

    def reserve(self, size: int, limit: int, label: str) -> contextlib.AbstractContextManager[Any]:
        del size, limit, label
        return contextlib.nullcontext()


class Room:
    """The loaded bases by fingerprint, and what their processes and adapters may hold together.

    `lock` guards `entries` and every entry's `users`. Whoever has an entry's turn may take
    adapters off it; so may whoever has the lock while nobody uses the entry.
    """

    def __init__(self, limit: int, memory: Memory | None, prompt_limit: int) -> None:
        self.limit, self.prompt_limit = limit, prompt_limit
        self.memory: Memory = memory or FreeMemory()
        self.entries: dict[str, Entry] = {}
        self.lock = threading.RLock()
        self.evicted_models = self.evicted_adapters = 0

    def make(self, entry: Entry, more: int, keep: AdapterInfo | None = None) -> None:
        """Have `entry` hold `more` bytes than it does now. Read prompts leave first, then what
        was not used for the longest time.

        The caller has the entry's turn; all its adapters but `keep` may leave too. Raises
        RefusedError `pool.memory` when everything else is in use or other programs hold the
        memory.
        """
        while True:
            with self.lock:
                needed = entry.bytes() + more
                others = sum(e.bytes() for e in self.entries.values() if e is not entry)
                why, hint = "", "raise the limit, or serve a smaller model"
                if others + needed <= self.limit:
                    try:
                        entry.reserve(needed, self.limit, self.memory)
                    except RefusedError as error:
                        why, hint = "; ".join((error.message, *error.details)), error.hint
                    else:
                        return
                elif others:
                    why = f"{others / 1e9:.2f} GB are in use by other models"
                    hint = f"try again later, or {hint}"
                # No other model's leaving helps what is too large alone.
                only_own = needed > self.limit
                over = needed + (0 if only_own else others) - self.limit
                # A ledger that refuses does not say by how much.
                size = over if over > 0 else RESERVED_IN
                if self._forget_prompts(entry, size, only_own=only_own):
                    continue
                if not self._evict_one(entry, keep, only_own=only_own):
                    raise _refused(entry, needed, self.limit, why, hint)

    def bound_prompts(self, entry: Entry) -> None:
        """Hold `prompt_limit` over all bases; each child holds it for its own."""
        with self.lock:
            while True:
                over = sum(e.prompt_bytes for e in self.entries.values()) - self.prompt_limit
                if over <= 0 or not self._forget_prompts(entry, over):
                    return

    def forget(self, entry: Entry) -> None:
        """Unload a base. Called under the lock."""
        if self.entries.get(entry.base.sha256) is entry:
            del self.entries[entry.base.sha256]
        entry.close()

    def _forget_prompts(self, entry: Entry, size: int, *, only_own: bool = False) -> bool:
        """Have the base that was not used for the longest time forget `size` bytes of prompts;
        False: nobody idle has any. Called under the lock."""
        owners = [e for e in (*self._idle(only_own), entry) if e.member and e.prompt_bytes]
        if not owners:
            return False
        min(owners, key=lambda owner: owner.used).forget_prompts(size)
        return True

    def _idle(self, only_own: bool) -> list[Entry]:
        if only_own:
            return []
        return [e for e in self.entries.values() if e.users == 0 and e.ready.is_set()]

    def _evict_one(self, entry: Entry, keep: AdapterInfo | None, *, only_own: bool) -> bool:
        """Unload what was not used for the longest time, a model or an adapter; False: nothing
        is idle. Called under the lock, so nobody begins to use it meanwhile."""
        idle = self._idle(only_own)
        choices: list[tuple[float, Entry, OnBase | None]] = [(e.used, e, None) for e in idle]
        for owner in [*idle, *([entry] if entry.ready.is_set() else [])]:
            for adapter in owner.adapters.values():
                if keep is None or adapter.info.content_hash != keep.content_hash:
                    choices.append((adapter.used, owner, adapter))
        if not choices:
            return False
        _, owner, victim = min(choices, key=lambda choice: (choice[0], choice[2] is None))
        if victim is None:
            self.forget(owner)
            self.evicted_models += 1
        else:
            owner.take_off(victim)
            self.evicted_adapters += 1
        return True


def _refused(entry: Entry, needed: int, limit: int, why: str, hint: str) -> RefusedError:
    return RefusedError(
        "pool.memory",
        f"{entry.base.name} needs {needed / 1e9:.2f} GB, the limit is {limit / 1e9:.2f} GB"
        + (f"; {why}" if why else ""),
        hint=hint,
    )
