"""Repair keeps the originals and loses only what can not be read anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from oodatcaa.errors import StateError
from oodatcaa.state.log import read_log
from oodatcaa.state.repair import examine, repair
from oodatcaa.state.snapshot import QUEUE_FILE
from oodatcaa.state.store import QueueStore
from queue_making import begin, claim


@pytest.fixture
def work(tmp_path: Path) -> Path:
    with QueueStore(tmp_path) as store:
        store.transact(begin(6))
        for _ in range(4):
            store.transact(claim("a"))
    return tmp_path


def damage(path: Path, old: bytes) -> bytes:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, b"#" * len(old), 1))
    return path.read_bytes()


def test_a_sound_queue_is_left_alone(work: Path, tmp_path: Path) -> None:
    assert examine(work) == ()
    before = (work / "queue.journal").read_bytes()
    assert repair(work) is None
    assert (work / "queue.journal").read_bytes() == before
    assert repair(tmp_path) is None


def test_the_snapshot_is_newer_than_the_sound_part_of_the_journal(work: Path) -> None:
    board = QueueStore(work).read()
    damaged = damage(work / "queue.journal", b'"seq":3,"revision":3')
    assert [one.code for one in examine(work)] == ["queue.journal_unreadable"]
    done = repair(work)
    assert done is not None
    assert (done.source, done.seq) == ("snapshot", 5)
    assert done.kept[0].read_bytes() == damaged
    with QueueStore(work) as store:
        assert store.read() == board.evolve(revision=6)
        assert store.transact(claim("b")) == "T001-B05"
        assert [one.seq for one in store.history()] == [1, 2, 3, 4, 5, 6, 7]
        assert list(read_log(work)) == list(store.history())
    assert examine(work) == ()


def test_only_the_journals_sound_part_is_left(work: Path) -> None:
    damage(work / "queue.journal", b'"seq":5,"revision":5')
    damage(work / QUEUE_FILE, b'"revision"')
    done = repair(work)
    assert done is not None
    assert (done.source, done.seq) == ("journal", 4)
    store = QueueStore(work)
    assert len([one for one in store.read().subtasks if one.lease]) == 3
    assert [one.seq for one in store.history()] == [1, 2, 3, 4, 5, 6]  # 5 from the log
    assert list(store.history())[-1].event.actor == "doctor"
    assert len(list(work.glob("*.damaged-*"))) == 2


def test_a_deleted_journal_with_events_beside_it(work: Path) -> None:
    (work / "queue.journal").unlink()
    (work / "events.jsonl").touch()
    with pytest.raises(StateError, match="journal_missing"):
        QueueStore(work).read()
    done = repair(work)
    assert done is not None
    assert done.source == "snapshot"
    assert QueueStore(work).read().revision == 6


def test_beyond_repair(work: Path) -> None:
    damage(work / "queue.journal", b'"head"')
    (work / QUEUE_FILE).write_text("{")
    before = sorted(path.name for path in work.iterdir())
    with pytest.raises(StateError) as caught:
        repair(work)
    assert caught.value.code == "queue.beyond_repair"
    assert sorted(path.name for path in work.iterdir()) == before
