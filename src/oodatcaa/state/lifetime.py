"""What happens to open stores when their process ends or forks."""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from typing import Protocol

from oodatcaa.errors import StateError


class Watched(Protocol):
    def close(self) -> None: ...
    def begin_in_child(self) -> None: ...


_stores: weakref.WeakSet[Watched] = weakref.WeakSet()


def watch(store: Watched) -> None:
    """Close it at exit (a command that forgot still leaves exact files); restart it in forks."""
    _stores.add(store)


def _close_all() -> None:
    for store in list(_stores):
        try:
            store.close()
        except (OSError, StateError) as error:
            sys.stderr.write(f"{error}\n")


def _restart_all() -> None:
    for store in list(_stores):
        store.begin_in_child()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_restart_all)
