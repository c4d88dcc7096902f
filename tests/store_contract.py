"""What every store must do, whatever it is made of. Subclass `StoreContract` and give `open_store`.

`open_store(place)` must return a new store object on the same state each time it is called with
the same folder, also from another process.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from oodatcaa.domain.board import Board, Decision
from oodatcaa.domain.ports import Store
from oodatcaa.domain.task import SubtaskStatus
from oodatcaa.errors import RefusedError, StateError
from queue_making import START, begin, board, claim, event, release, story, subtask

Opener = Callable[[Path], Store]


class StoreContract:
    @pytest.fixture
    def open_store(self) -> Opener:
        raise NotImplementedError

    def test_an_empty_place_reads_as_an_empty_board(
        self, open_store: Opener, tmp_path: Path
    ) -> None:
        assert open_store(tmp_path / "nothing").read() == Board()
        assert list(open_store(tmp_path / "nothing").history()) == []
        assert not (tmp_path / "nothing").exists()

    def test_what_was_committed_is_read_by_everybody(
        self, open_store: Opener, tmp_path: Path
    ) -> None:
        store, other = open_store(tmp_path), open_store(tmp_path)
        assert other.read() == Board()
        store.transact(begin(4))
        wanted = board(4, revision=1)
        assert store.read() == wanted
        assert other.read() == wanted
        assert open_store(tmp_path).read() == wanted

    def test_the_value_comes_back_and_the_revision_grows_by_one(
        self, open_store: Opener, tmp_path: Path
    ) -> None:
        store = open_store(tmp_path)
        store.transact(begin(3))
        assert store.transact(claim("a")) == "T001-B01"
        assert store.transact(claim("a")) == "T001-B02"
        assert store.read().revision == 3

    def test_the_decision_is_called_once_with_the_newest_board(
        self, open_store: Opener, tmp_path: Path
    ) -> None:
        store, other = open_store(tmp_path), open_store(tmp_path)
        store.transact(begin(3))
        other.transact(claim("b"))
        seen: list[int] = []

        def look(old: Board, now: datetime) -> Decision[None]:
            assert now.utcoffset() == timedelta(0)
            seen.append(old.revision)
            return Decision(old, None)

        store.transact(look)
        assert seen == [2]

    def test_deciding_nothing_writes_nothing(self, open_store: Opener, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        store.transact(begin(3))
        before = _bytes_of(tmp_path)
        store.transact(lambda old, _: Decision(old, None))
        store.transact(lambda old, _: Decision(old.with_task(story(1)), None))  # an equal record
        assert _bytes_of(tmp_path) == before
        assert store.read().revision == 1

    def test_a_decision_that_raises_changes_nothing(
        self, open_store: Opener, tmp_path: Path
    ) -> None:
        store = open_store(tmp_path)
        store.transact(begin(3))

        def refuse(_: Board, __: datetime) -> Decision[None]:
            raise RefusedError("test.no", "no")

        with pytest.raises(RefusedError):
            store.transact(refuse)
        assert store.read() == board(3, revision=1)
        assert open_store(tmp_path).transact(claim("a")) == "T001-B01"

    def test_events_without_a_change_are_kept(self, open_store: Opener, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        store.transact(lambda old, now: Decision(old, None, (event(now), event(now, text="two"))))
        assert [one.event.text for one in store.history()] == ["something happened", "two"]
        assert [(one.seq, one.index) for one in store.history()] == [(1, 0), (1, 1)]

    def test_history_is_complete_ordered_and_the_same_for_all(
        self, open_store: Opener, tmp_path: Path
    ) -> None:
        store = open_store(tmp_path)
        store.transact(begin(20))
        for _ in range(19):
            store.transact(claim("a"))
        places = [(one.seq, one.index) for one in store.history()]
        assert places == [(n, 0) for n in range(1, 21)]
        assert list(open_store(tmp_path).history()) == list(store.history())

    @pytest.mark.parametrize(
        "broken",
        [
            lambda old: old.evolve(stories=(*old.stories, story(1, title="again"))),
            lambda old: old.evolve(subtasks=(*old.subtasks, subtask(7, 1))),
            lambda old: old.evolve(stories=()),
            lambda old: old.evolve(revision=old.revision + 1, stories=(story(1, title="new"),)),
        ],
        ids=["the same id twice", "no such story", "story removed", "another revision"],
    )
    def test_an_impossible_board_is_refused(
        self, open_store: Opener, tmp_path: Path, broken: Callable[[Board], Board]
    ) -> None:
        store = open_store(tmp_path)
        store.transact(begin(3))
        with pytest.raises(StateError) as caught:
            store.transact(lambda old, _: Decision(broken(old), None))
        assert caught.value.code == "queue.inconsistent"
        assert caught.value.details
        assert store.read() == board(3, revision=1)

    def test_order_removal_and_offers_survive(self, open_store: Opener, tmp_path: Path) -> None:
        store = open_store(tmp_path)
        store.transact(begin(5))

        def shuffle(old: Board, __: datetime) -> Decision[None]:
            a, b, _, d = old.subtasks
            return Decision(old.evolve(subtasks=(d, b, a), stories=(story(2), story(1))), None)

        store.transact(shuffle)
        fresh = open_store(tmp_path).read()
        assert [one.id for one in fresh.subtasks] == ["T001-B04", "T001-B02", "T001-B01"]
        assert [one.id for one in fresh.stories] == ["T002", "T001"]
        assert fresh == store.read()

    def test_a_transaction_inside_a_decision_is_refused(
        self, open_store: Opener, tmp_path: Path
    ) -> None:
        store = open_store(tmp_path)

        def nested(old: Board, _: datetime) -> Decision[None]:
            store.transact(begin(2))
            return Decision(old, None)

        with pytest.raises(StateError) as caught:
            store.transact(nested)
        assert caught.value.code == "queue.nested"
        assert store.read() == Board()

    def test_racing_processes_claim_each_task_once(
        self, open_store: Opener, tmp_path: Path
    ) -> None:
        tasks, workers = 61, 6
        open_store(tmp_path).transact(begin(tasks))
        context = multiprocessing.get_context("fork")
        with context.Pool(workers) as pool:
            jobs = [(open_store, tmp_path, f"worker-{n}") for n in range(workers)]
            won = [task for found in pool.starmap(_claim_all, jobs) for task in found]
        assert sorted(won) == sorted(f"T001-B{n:02d}" for n in range(1, tasks))
        final = open_store(tmp_path).read()
        assert final.revision == tasks
        assert all(one.attempt == 1 for one in final.subtasks)
        owners = Counter(one.event.subject for one in open_store(tmp_path).history())
        assert owners.pop("sprint") == 1
        assert set(owners.values()) == {1}

    def test_release_by_another_owner_changes_nothing(
        self, open_store: Opener, tmp_path: Path
    ) -> None:
        store = open_store(tmp_path)
        store.transact(begin(2))
        store.transact(claim("a"))
        assert store.transact(release("T001-B01", "b", SubtaskStatus.DONE)) is False
        assert store.transact(release("T001-B01", "a", SubtaskStatus.DONE)) is True
        assert store.read().subtasks[0].status is SubtaskStatus.DONE


def _claim_all(open_store: Opener, place: Path, owner: str) -> list[str]:
    store = open_store(place)
    won = []
    while (task := store.transact(claim(owner))) is not None:
        won.append(task)
    return won


def _bytes_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.iterdir())
        if not path.name.endswith(".holder")
    }


__all__ = ["START", "Opener", "StoreContract"]
