"""A store that nobody closed: its files are given back when it is no longer used."""

from __future__ import annotations

import gc
from pathlib import Path

from oodatcaa.domain.board import Decision
from oodatcaa.state.store import QueueStore
from queue_making import board, sprint


def open_files() -> int:
    return sum(1 for _ in Path("/dev/fd").iterdir())


def test_stores_that_are_dropped_give_their_files_back(tmp_path: Path) -> None:
    made = board(4).evolve(sprint=sprint())

    def use() -> None:
        store = QueueStore(tmp_path)
        store.transact(lambda old, _: Decision(made.evolve(revision=old.revision), None))
        assert store.read().subtasks == made.subtasks

    use()
    gc.collect()
    before = open_files()
    for _ in range(20):
        use()
    gc.collect()
    assert open_files() <= before
    with QueueStore(tmp_path) as store:
        assert store.read().subtasks == made.subtasks
