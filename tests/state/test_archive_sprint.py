"""A closed sprint moves away as a whole, and is never overwritten."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from oodatcaa.domain.board import Board, Decision
from oodatcaa.errors import StateError
from oodatcaa.state.log import read_log, rotations
from oodatcaa.state.snapshot import QUEUE_FILE
from oodatcaa.state.store import QueueStore
from queue_making import begin, claim, event, sprint


def empty(old: Board, now: datetime) -> Decision[str]:
    return Decision(
        old.evolve(sprint=None, stories=(), subtasks=()), "closed", (event(now, text="closed"),)
    )


def test_everything_of_the_sprint_is_in_its_folder(tmp_path: Path) -> None:
    with QueueStore(tmp_path, log_bytes=900, journal_bytes=900) as store:
        store.transact(begin(8))
        for _ in range(7):
            store.transact(claim("a"))
        board, history = store.read(), list(store.history())
        folder, value = store.archive_sprint(1, empty)
        assert (folder, value) == (tmp_path / "archive" / "sprint-1", "closed")
        kept = json.loads((folder / QUEUE_FILE).read_text())
        assert kept["exact"] is True
        assert kept["revision"] == board.revision
        assert list(read_log(folder)) == history
        assert rotations(folder / "archive")
        assert not rotations(tmp_path / "archive")
        assert store.read() == Board(revision=board.revision + 1)
        assert [one.event.text for one in store.history()] == ["closed"]
        assert list(read_log(tmp_path)) == list(store.history())
        assert QueueStore(tmp_path).read() == store.read()


def test_a_sprint_is_archived_once_and_only_the_open_one(tmp_path: Path) -> None:
    store = QueueStore(tmp_path)
    store.transact(begin(2))
    with pytest.raises(StateError) as caught:
        store.archive_sprint(2, empty)
    assert caught.value.code == "sprint.not_open"
    store.archive_sprint(1, empty)
    store.transact(lambda old, _: Decision(old.evolve(sprint=sprint(1)), None))
    with pytest.raises(StateError) as caught:
        store.archive_sprint(1, empty)
    assert caught.value.code == "sprint.archived_already"
    assert store.read().sprint == sprint(1)


def test_a_closed_sprints_queue_file_does_not_bring_it_back(tmp_path: Path) -> None:
    told: list[str] = []
    store = QueueStore(tmp_path, on_notice=told.append)
    store.transact(begin(2))
    store.flush()
    closed = (tmp_path / QUEUE_FILE).read_bytes()
    store.archive_sprint(1, empty)
    (tmp_path / QUEUE_FILE).write_bytes(closed)

    assert store.read().sprint is None
    assert any("refused" in line for line in told)
    assert list(tmp_path.glob("SPRINT_QUEUE.rejected-*.json"))
