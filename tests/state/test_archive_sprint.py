"""A closed sprint moves away as a whole, and is never overwritten."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from oodatcaa.domain.board import Board, Decision
from oodatcaa.errors import StateError
from oodatcaa.state.log import LOG_FILE, read_log, rotations
from oodatcaa.state.repair import examine, repair
from oodatcaa.state.snapshot import QUEUE_FILE
from oodatcaa.state.store import QueueStore
from queue_making import begin, board, claim, event, sprint


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


LIVE = (QUEUE_FILE, "queue.journal", LOG_FILE)


def rolled_back(work: Path, names: tuple[str, ...], *, opened: bool) -> QueueStore:
    """Sprint 1 was closed, perhaps sprint 2 opened; `names` are as they were before."""
    with QueueStore(work) as store:
        store.transact(begin(4))
        store.transact(claim("a"))
    before = {name: (work / name).read_bytes() for name in names}
    with QueueStore(work) as store:
        store.transact(claim("b"))
        store.archive_sprint(1, empty)
        if opened:
            store.transact(
                lambda old, _: Decision(board(3, old.revision).evolve(sprint=sprint(2)), None)
            )
    for name, data in before.items():
        (work / name).write_bytes(data)
    return QueueStore(work)


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize(
    "names", [LIVE[1:2], LIVE[:2], LIVE[1:], LIVE], ids=lambda names: "+".join(names)
)
def test_a_closed_sprints_journal_does_not_bring_it_back(
    tmp_path: Path, names: tuple[str, ...], opened: bool
) -> None:
    store = rolled_back(tmp_path, names, opened=opened)
    for use in (QueueStore.read, lambda one: one.transact(claim("b"))):
        with pytest.raises(StateError, match="archive/sprint-1 knows of 4") as caught:
            use(store)
        assert caught.value.code == "queue.journal_older"
    assert [one.code for one in examine(tmp_path)] == ["queue.journal_older"]

    done = repair(tmp_path)
    assert done is not None
    assert {path.name.split(".damaged")[0] for path in done.kept} >= set(LIVE[:2])
    survived = opened and QUEUE_FILE not in names
    with QueueStore(tmp_path) as mended:
        assert mended.read().sprint == (sprint(2) if survived else None)
        assert [one.code for one in examine(tmp_path)] == []
        assert all(one.seq > 3 for one in mended.history())
        mended.transact(lambda old, now: Decision(old, None, (event(now),)))
        assert list(read_log(tmp_path)) == list(mended.history())
    assert repair(tmp_path) is None


def test_a_lone_queue_file_of_a_closed_sprint_is_not_adopted(tmp_path: Path) -> None:
    rolled_back(tmp_path, (QUEUE_FILE,), opened=False)
    for name in LIVE[1:]:
        (tmp_path / name).unlink()
    with pytest.raises(StateError) as caught:
        QueueStore(tmp_path).read()
    assert caught.value.code == "queue.journal_missing"
    assert repair(tmp_path) is not None
    assert QueueStore(tmp_path).read().sprint is None


def test_a_new_start_beside_an_archive_gives_no_number_twice(tmp_path: Path) -> None:
    rolled_back(tmp_path, (), opened=False)
    for name in LIVE:
        (tmp_path / name).unlink()
    with QueueStore(tmp_path) as store:
        assert store.read() == Board()
        store.transact(begin(2))
        store.transact(claim("a"))
    with QueueStore(tmp_path) as store:
        assert [one.seq for one in store.history()] == [5, 6]

    assert examine(tmp_path) == ()
