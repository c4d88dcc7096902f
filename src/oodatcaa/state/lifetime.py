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


class Closable(Protocol):
    def close(self) -> None: ...


_stores: weakref.WeakSet[Watched] = weakref.WeakSet()


def watch(store: Watched, *handles: Closable) -> None:
    """Close it at exit (a command that forgot still leaves exact files); restart it in forks.

    A store that is dropped unclosed gives its `handles` back; it writes nothing any more, for that
    would happen at any moment, in any thread.
    """
    _stores.add(store)
    weakref.finalize(store, _close_handles, handles).atexit = False


def _close_handles(handles: tuple[Closable, ...]) -> None:
    for handle in handles:
        handle.close()


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
