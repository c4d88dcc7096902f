"""Hold a child's whole tree to a number of bytes, and say so when it wanted more.

Three layers, as far as the machine has them: a control group (the kernel ends what goes beyond),
else RLIMIT_DATA for each process, and everywhere a look at the tree about once a second.
"""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from oodatcaa.kit.cgroup import MemoryGroup, make_group
from oodatcaa.kit.memory import tree_memory
from oodatcaa.kit.process import Child, Limits

LOOK_SECONDS = 1.0
_SAYS_SO = re.compile(
    r"\bMemoryError\b|Cannot allocate memory|out of memory|bad_alloc|\bENOMEM\b", re.IGNORECASE
)
"""What programs say that were refused memory; read only about a child that failed."""


class MemoryBound:
    """One bound for one child: `limits` for its start, `over` while it runs, `ran_out` afterwards.

    `limit` None = no bound. Use it as a context manager around the child.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._group: MemoryGroup | None = None
        self._child: Child | None = None
        self._looked = 0.0
        self._over = ""
        self._kills = 0
        self._stack = ExitStack()

    def limits(self, more: Limits | None = None) -> Limits:
        """For the start of the child; what `more` says besides memory holds too."""
        found = more or Limits()
        if self._limit is None:
            return found
        if self._group is not None:
            return found.evolve(group=self._group.entrance, memory_bytes=None)
        return found.evolve(memory_bytes=self._limit)

    def watch(self, child: Child) -> None:
        self._child = child

    def over(self) -> str:
        """Why the tree has to be ended; empty while it keeps to its bound."""
        now = time.monotonic()
        if self._limit is None or self._over or now - self._looked < LOOK_SECONDS:
            return self._over
        self._looked = now
        if self._child is not None:
            used = tree_memory(self._child.pid).tree_bytes
            if used > self._limit:
                self._over = f"it used {_gb(used)}, more than its {_gb(self._limit)} of memory"
        return self._over

    def ran_out(self, said: str = "") -> str:
        """Whether a child that failed did so for want of memory; `said` is the end of what it
        printed. Empty = nothing speaks for that."""
        if self._limit is None or self._over:
            return self._over
        if self._kills or (self._group is not None and self._group.kills):
            return f"the kernel ended it at its {_gb(self._limit)} of memory"
        if _SAYS_SO.search(said):
            return f"it was refused more than its {_gb(self._limit)} of memory"
        return ""

    def __enter__(self) -> Self:
        if self._limit is not None:
            self._group = make_group(self._limit)
            if self._group is not None:
                self._stack.enter_context(self._group)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._group is not None:
            self._kills, self._group = self._group.kills, None
        self._stack.close()


def _gb(value: int) -> str:
    return f"{value / 1e9:.3g} GB"
