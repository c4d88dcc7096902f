"""Repair keeps the originals and loses only what can not be read anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from oodatcaa.domain.board import Decision
from oodatcaa.domain.task import SubtaskStatus
from oodatcaa.errors import StateError
from oodatcaa.state.changes import Replica
from oodatcaa.state.journal import Journal
from oodatcaa.state.log import LOG_FILE, read_log
from oodatcaa.state.repair import examine, repair
from oodatcaa.state.snapshot import QUEUE_FILE, intact
from oodatcaa.state.store import QueueStore
from queue_making import begin, board, claim, event, release, sprint


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
    before = QueueStore(work).read()
    damaged = damage(work / "queue.journal", b'"seq":3,"revision":3')
    assert [one.code for one in examine(work)] == ["queue.journal_unreadable"]
    done = repair(work)
    assert done is not None
    assert (done.source, done.seq) == ("snapshot", 5)
    assert done.kept[0].read_bytes() == damaged
    with QueueStore(work) as store:
        assert store.read() == before.evolve(revision=6)
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


def older(work: Path, *names: str) -> dict[str, bytes]:
    """Two more attempts are handed out, then files of before are put back; what was newest."""
    before = {name: (work / name).read_bytes() for name in names}
    with QueueStore(work) as store:
        for owner in ("a", "late"):
            store.transact(release("T001-B01", owner, SubtaskStatus.READY))
            store.transact(claim("late"))
    newest = {name: (work / name).read_bytes() for name in (*names, LOG_FILE)}
    for name, data in before.items():
        (work / name).write_bytes(data)
    return newest


@pytest.mark.parametrize("names", [("queue.journal",), ("queue.journal", QUEUE_FILE)])
def test_an_older_journal_is_not_gone_on_from(work: Path, names: tuple[str, ...]) -> None:
    newest = older(work, *names)
    log = (work / LOG_FILE).read_bytes()
    for use in (QueueStore.read, lambda one: one.transact(claim("b")), lambda o: list(o.history())):
        with pytest.raises(StateError) as caught:
            use(QueueStore(work))
        assert caught.value.code == "queue.journal_older"
        assert str(work / "queue.journal") in caught.value.message
        assert "oodatcaa doctor --repair" in caught.value.hint
    assert [one.code for one in examine(work)] == ["queue.journal_older"]
    assert (work / LOG_FILE).read_bytes() == log == newest[LOG_FILE]
    done = repair(work)
    assert done is not None
    assert done.source == ("snapshot" if len(names) == 1 else "journal")
    with QueueStore(work) as store:
        assert store.read().subtasks[0].attempt == 3
        assert [one.seq for one in store.history()] == list(range(1, 11))
        store.transact(lambda old, _: Decision(old, None))
        assert list(read_log(work)) == list(store.history())
        assert (work / LOG_FILE).read_bytes().startswith(log)
    assert examine(work) == ()
    assert repair(work) is None


def test_an_older_journal_without_log_and_with_the_newest_snapshot(work: Path) -> None:
    older(work, "queue.journal")
    (work / LOG_FILE).unlink()
    with pytest.raises(StateError, match=r"SPRINT_QUEUE\.json knows of 9"):
        QueueStore(work).read()
    done = repair(work)
    assert done is not None
    assert (done.source, done.seq) == ("snapshot", 9)


def test_a_lease_that_a_later_attempt_followed_is_ended(work: Path) -> None:
    with QueueStore(work) as store:
        held = store.read().subtasks[0]
        assert held.lease is not None
    older(work, "queue.journal", QUEUE_FILE)
    assert repair(work) is not None
    task = QueueStore(work).read().subtasks[0]
    assert (task.status, task.lease, task.attempt) == (SubtaskStatus.READY, None, 3)


def test_a_snapshot_of_another_queue_stops_nothing(work: Path, tmp_path: Path) -> None:
    with QueueStore(tmp_path / "other") as other:
        other.transact(lambda _old, _: Decision(board(2).evolve(sprint=sprint(2)), None))
        for _ in range(9):
            other.transact(lambda old, now: Decision(old, None, (event(now),)))
    (work / QUEUE_FILE).write_bytes((tmp_path / "other" / QUEUE_FILE).read_bytes())
    assert len(QueueStore(work).read().subtasks) == 5
    assert len(list(work.glob("*.rejected-*.json"))) == 1


def test_a_deleted_journal_with_a_log_beside_it(work: Path) -> None:
    (work / "queue.journal").unlink()
    log = (work / LOG_FILE).read_bytes()
    assert not (work / "events.jsonl").exists()
    for use in (QueueStore.read, lambda one: one.transact(claim("b"))):
        with pytest.raises(StateError) as caught:
            use(QueueStore(work))
        assert caught.value.code == "queue.journal_missing"
        assert "oodatcaa doctor --repair" in caught.value.hint
    assert [one.code for one in examine(work)] == ["queue.journal_missing"]
    assert repair(work) is not None
    with QueueStore(work) as store:
        assert [one.seq for one in store.history()] == [1, 2, 3, 4, 5, 6]
        assert len([one for one in store.read().subtasks if one.lease]) == 4
        store.transact(claim("b"))
        assert (work / LOG_FILE).read_bytes().startswith(log)
    assert examine(work) == ()


def test_a_deleted_queue_file_is_found_written_again_and_told(work: Path) -> None:
    (work / QUEUE_FILE).unlink()
    assert [one.code for one in examine(work)] == ["queue.snapshot_missing"]
    told: list[str] = []
    QueueStore(work, on_notice=told.append).read()
    assert intact((work / QUEUE_FILE).read_bytes())
    assert told == ["SPRINT_QUEUE.json was deleted; it was written again from the journal"]
    assert examine(work) == ()


def test_a_board_whose_ids_do_not_fit_together_is_told(work: Path) -> None:
    journal = Journal(work / "queue.journal")
    journal.follow(locked=True)
    replica = journal.replica
    orphans = replica.board.evolve(stories=())
    journal.rebase(Replica(orphans, seq=replica.seq, at=replica.at))
    journal.close()
    found = [one for one in examine(work) if one.code == "queue.structure"]
    assert found
    assert found[0].repair.startswith("none")
