"""The file store keeps the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from oodatcaa.domain.ports import Store
from oodatcaa.state.store import QueueStore
from store_contract import Opener, StoreContract


def open_queue(place: Path) -> Store:
    return QueueStore(place)


def open_lagging_queue(place: Path) -> Store:
    return QueueStore(place, exact_tasks=1, log_bytes=2_000)


class TestQueueStore(StoreContract):
    @pytest.fixture
    def open_store(self) -> Opener:
        return open_queue


class TestQueueStoreWithALaggingSnapshot(StoreContract):
    """The same, as a large queue behaves: snapshot behind, log rotated often."""

    @pytest.fixture
    def open_store(self) -> Opener:
        return open_lagging_queue
