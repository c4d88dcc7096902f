"""Full disks, folders that can not be written, clocks that jump, damaged files."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from oodatcaa.domain.board import Board, Decision
from oodatcaa.errors import StateError
from oodatcaa.kit import faults
from oodatcaa.kit.locks import FileLock
from oodatcaa.state.beside import Beside
from oodatcaa.state.disk import write_at
from oodatcaa.state.log import read_log
from oodatcaa.state.publishing import BEHIND_SECONDS
from oodatcaa.state.snapshot import QUEUE_FILE
from oodatcaa.state.store import QueueStore
from queue_making import START, begin, board, claim, event


@pytest.fixture(autouse=True)
def disarm() -> Iterator[None]:
    yield
    faults.arm("")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    with QueueStore(tmp_path / "work") as store:
        store.transact(begin(6))
    return tmp_path / "work"


def note(store: QueueStore, text: str = "more") -> None:
    store.transact(lambda old, now: Decision(old, None, (event(now, text=text),)))


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize(
    "point",
    ["journal.before_write", "journal.half_written", "journal.after_write", "journal.before_fsync"],
)
def test_a_commit_that_fails_changes_nothing(work: Path, point: str, error: str) -> None:
    store, reader = QueueStore(work), QueueStore(work)
    assert reader.read().revision == 1
    faults.arm(f"{point}:1:{error}")
    with pytest.raises(StateError) as caught:
        store.transact(claim("a"))
    faults.arm("")
    assert caught.value.code == "queue.write_failed"
    assert "nothing was changed" in caught.value.message
    for one in (store, reader, QueueStore(work)):
        assert one.read() == board(6, revision=1)
    assert store.transact(claim("b")) == "T001-B01"
    assert reader.transact(claim("c")) == "T001-B02"
    assert len(list(read_log(work))) == 3


def test_a_reader_that_saw_a_line_which_was_taken_back(work: Path) -> None:
    store, reader = QueueStore(work), QueueStore(work)

    def peek(old: Board, now: datetime) -> Decision[None]:
        return Decision(old, None, (event(now, text="x" * 3000),))

    real = os.fdatasync
    seen = []

    def fail(_: int) -> None:
        seen.append(reader.read().revision)
        os.fdatasync = real
        raise OSError(5, "the disk is gone")

    os.fdatasync = fail  # type: ignore[assignment]
    try:
        with pytest.raises(StateError):
            store.transact(peek)
    finally:
        os.fdatasync = real
    assert seen == [2]
    assert reader.read().revision == 1
    note(store)
    assert reader.read().revision == 2
    assert [one.event.text for one in reader.history()] == ["it begins", "more"]


@pytest.mark.parametrize(
    "point",
    [
        "log.before_write",
        "log.half_written",
        "snapshot.before_write",
        "snapshot.before_rename",
        "marker.before_write",
        "marker.half_written",
    ],
)
def test_a_view_that_fails_does_not_undo_the_commit(work: Path, point: str) -> None:
    store = QueueStore(work)
    faults.arm(f"{point}:1:ENOSPC,{point}:2:ENOSPC")
    assert store.transact(claim("a")) == "T001-B01"
    with pytest.raises(StateError) as caught:
        store.flush()
    faults.arm("")
    assert caught.value.code == "queue.views_behind"
    note(store)
    store.close()
    assert [one.seq for one in read_log(work)] == [1, 2, 3]
    assert json.loads((work / QUEUE_FILE).read_text())["revision"] == 3
    assert not list(work.glob("*rejected*"))


def _fill_up(work: Path, limit: int, out: object) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    store = QueueStore(work)
    done = 0
    try:
        for _ in range(200):
            note(store, "y" * 400)
            done += 1
    except StateError as error:
        out.put((done, error.code))  # type: ignore[attr-defined]


def test_real_short_writes_when_the_journal_may_not_grow(work: Path) -> None:
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    limit = (work / "queue.journal").stat().st_size + 20_123
    process = context.Process(target=_fill_up, args=(work, limit, out))
    process.start()
    done, code = out.get(timeout=60)
    process.join()
    assert code == "queue.write_failed"
    assert done > 5
    store = QueueStore(work)
    assert store.read().revision == 1 + done
    assert len(list(store.history())) == 1 + done
    note(store)
    assert len(list(read_log(work))) == 2 + done


def _look_and_touch(work: Path, out: object) -> None:
    if os.getuid() == 0:
        os.setuid(65534)
    store = QueueStore(work)
    said: list[object] = [store.read().revision, len(list(store.history()))]
    try:
        note(store)
    except StateError as error:
        said.append(error.code)
    out.put(said)  # type: ignore[attr-defined]


def test_a_read_only_folder_can_be_read() -> None:
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as made:
        work = Path(made) / "work"
        with QueueStore(work) as store:
            store.transact(begin(3))
        for path in work.iterdir():
            path.chmod(0o444)
        for folder in (work, work.parent):
            folder.chmod(0o555)
        out = context.Queue()
        process = context.Process(target=_look_and_touch, args=(work, out))
        process.start()
        said = out.get(timeout=60)
        process.join()
        for folder in (work.parent, work):
            folder.chmod(0o755)
    assert said == [1, 1, "queue.unwritable"]


def _opened_too_early(work: Path, out: object) -> None:
    if os.getuid() == 0:
        os.setuid(65534)
    files = [path for path in work.iterdir() if path.is_file()]
    for path in files:
        path.chmod(0o444)
    store = QueueStore(work)
    assert store.read().revision == 1
    for path in files:
        path.chmod(0o644)
    note(store)
    out.put(store.read().revision)  # type: ignore[attr-defined]


def test_who_looked_while_all_was_read_only_can_write_afterwards() -> None:
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as made:
        work = Path(made) / "work"
        with QueueStore(work) as store:
            store.transact(begin(3))
        Path(made).chmod(0o777)
        if os.getuid() == 0:
            for path in (work, *work.iterdir()):
                os.chown(path, 65534, 65534)
        out = context.Queue()
        process = context.Process(target=_opened_too_early, args=(work, out))
        process.start()
        assert out.get(timeout=60) == 2
        process.join()


@pytest.mark.parametrize("point", ["copy.half_written", "seal.before_write", "aside.before_write"])
def test_a_full_disk_is_said_in_one_line_wherever_it_is_noticed(work: Path, point: str) -> None:
    store = QueueStore(work)
    before = store.read()
    faults.arm(f"{point}:1:ENOSPC")
    if point.startswith("aside"):
        (work / QUEUE_FILE).write_text("{")
    with pytest.raises(StateError) as caught:
        store.archive_sprint(1, lambda old, _: Decision(old.evolve(sprint=None), None))
    faults.arm("")
    assert caught.value.code == "queue.unwritable"
    assert "No space left" in caught.value.message
    assert QueueStore(work).read().evolve(revision=1) == before
    store.archive_sprint(1, lambda old, _: Decision(old.evolve(sprint=None), None))
    assert (work / "archive" / "sprint-1" / QUEUE_FILE).exists()


def _read_beside_a_locked_file(work: Path, out: object) -> None:
    if os.getuid() == 0:
        os.setuid(65534)
    (work / QUEUE_FILE).write_text("{")
    (work / f"{QUEUE_FILE}.lock").chmod(0o444)
    out.put(QueueStore(work).read().revision)  # type: ignore[attr-defined]


def test_a_lock_file_that_may_not_be_opened_does_not_keep_a_reader_from_reading() -> None:
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as made:
        work = Path(made) / "work"
        with QueueStore(work) as store:
            store.transact(begin(3))
        Path(made).chmod(0o777)
        if os.getuid() == 0:
            for path in (work, *work.iterdir()):
                os.chown(path, 65534, 65534)
        out = context.Queue()
        process = context.Process(target=_read_beside_a_locked_file, args=(work, out))
        process.start()
        assert out.get(timeout=60) == 1
        process.join()


def test_a_full_disk_does_not_keep_a_reader_from_reading(work: Path) -> None:
    store = QueueStore(work)
    (work / QUEUE_FILE).write_text("{")
    faults.arm("aside.before_write:1:ENOSPC,aside.before_write:2:ENOSPC")
    assert store.read().revision == 1
    with pytest.raises(StateError, match="No space left"):
        store.flush()  # it tries again, and says so when that fails too
    faults.arm("")
    store.read()
    assert len(list(work.glob("SPRINT_QUEUE.rejected-*.json"))) == 1


def test_time_stands_still_while_the_clock_is_behind(tmp_path: Path) -> None:
    times = [START, START + timedelta(hours=1), START - timedelta(days=2), START, START]
    times.append(START + timedelta(hours=2))
    queue = iter(times)
    store = QueueStore(tmp_path, clock=lambda: next(queue))
    for _ in times:
        note(store)
    stamps = [one.event.at for one in store.history()]
    assert stamps == sorted(stamps)
    assert stamps[-1] == times[-1]
    said = [one.event.text for one in store.history() if one.event.actor == "clock"]
    assert said == ["the machine's clock went back by 176400 s; times stand still until it is past"]


def damage(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        (b'"head":1', b'"head":2', ":1:1 "),
        (b'"offers":[]', b'"offers":[[', ":2:112 "),
        (b'"it begins"', b'"it began!"', ":3:1 "),
        (b'"snap":{"seq":1', b'"snap":{"seq":2', ":4:1 "),
        (b'"seq":2,"revision":2', b'"seq":2,revision":2', ":5:27 "),
    ],
)
def test_a_damaged_journal_names_the_place_and_is_never_empty(
    work: Path, old: bytes, new: bytes, place: str
) -> None:
    with QueueStore(work) as store:
        note(store)
    damage(work / "queue.journal", old, new)
    kept = (work / "queue.journal").read_bytes()
    for attempt in (QueueStore(work).read, lambda: QueueStore(work).transact(claim("a"))):
        with pytest.raises(StateError) as caught:
            attempt()
        assert caught.value.code == "queue.journal_unreadable"
        assert f"queue.journal{place}" in caught.value.message
        assert "oodatcaa doctor --repair" in caught.value.hint
    assert (work / "queue.journal").read_bytes() == kept


def test_a_torn_last_line_is_cut_off(work: Path) -> None:
    journal = work / "queue.journal"
    whole = journal.read_bytes()
    for tail in (b'{"crc":"0', b'{"crc":"00000000","seq":2\0\0\0\n', b"\0" * 100):
        journal.write_bytes(whole + tail)
        assert QueueStore(work).read().revision == 1
        assert journal.read_bytes() == whole + tail, "a reader changes nothing"
    with QueueStore(work) as store:
        note(store)
    assert whole in journal.read_bytes()
    assert QueueStore(work).read().revision == 2


def test_a_journal_that_is_gone_or_older_is_never_taken_silently(work: Path) -> None:
    journal = work / "queue.journal"
    old = journal.read_bytes()
    store = QueueStore(work)
    for _ in range(3):
        note(store)
    journal.rename(work / "kept")
    with pytest.raises(StateError, match="is gone"):
        store.read()
    journal.write_bytes(old)
    with pytest.raises(StateError) as caught:
        store.read()
    assert caught.value.code == "queue.journal_older"


def test_a_large_queue_says_that_it_lags_and_is_exact_when_closed(tmp_path: Path) -> None:
    with QueueStore(tmp_path, exact_tasks=3) as store:
        store.transact(begin(6))
        for _ in range(5):
            store.transact(claim("a"))
        document = json.loads((tmp_path / QUEUE_FILE).read_text())
        assert document["exact"] is False
        assert "may be a second behind" in document["note"]
        assert store.read().revision == 6
    document = json.loads((tmp_path / QUEUE_FILE).read_text())
    assert (document["exact"], document["revision"]) == (True, 6)
    other = QueueStore(tmp_path, exact_tasks=3)
    before = (tmp_path / QUEUE_FILE).stat().st_mtime_ns
    other.read()
    other.close()
    assert (tmp_path / QUEUE_FILE).stat().st_mtime_ns == before, "a reader wrote"


def test_the_crew_runs_on_and_the_file_follows_within_a_second(tmp_path: Path) -> None:
    store = QueueStore(tmp_path, exact_tasks=3)
    store.transact(begin(6))
    store.transact(claim("a"))
    for _ in range(100):
        document = json.loads((tmp_path / QUEUE_FILE).read_text())
        if document["revision"] == 2:
            break
        signal.sigtimedwait([], 0.1)
    assert document["revision"] == 2


def test_of_many_processes_one_writes_the_file_of_a_large_queue(work: Path) -> None:
    stores = [QueueStore(work, exact_tasks=0) for _ in range(6)]
    begun = time.monotonic()
    while time.monotonic() - begun < 3 * BEHIND_SECONDS:
        for store in stores:
            note(store)
        time.sleep(0.01)
    written = (work / "queue.journal").read_bytes().count(b',"snap":')
    took = time.monotonic() - begun
    for store in stores:
        store.close()
    begins = 2  # the small queue's last one, and the first that says that it lags
    assert written <= begins + took / BEHIND_SECONDS + 1, "each wrote what another one had written"


def large(work: Path) -> QueueStore:
    """A store whose views may lag, in the state where they do: its fsyncs need no lock."""
    store = QueueStore(work, exact_tasks=0)
    note(store)
    return store


def test_a_large_queue_waits_for_the_disk_without_the_lock(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = large(work), QueueStore(work, exact_tasks=0)
    real, free = os.fdatasync, []

    def look(handle: int) -> None:
        lock = FileLock(work / f"{QUEUE_FILE}.lock")
        free.append(lock.try_acquire())
        lock.close()
        real(handle)

    monkeypatch.setattr(os, "fdatasync", look)
    note(store, "mine")
    assert free == [True]
    note(other, "yours")
    assert [one.event.text for one in store.history()] == ["it begins", "more", "mine", "yours"]


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("built_on", [False, True])
def test_a_line_that_the_disk_refuses_is_written_anew_or_told_as_unsure(
    work: Path, monkeypatch: pytest.MonkeyPatch, broken: bool, built_on: bool
) -> None:
    store, other = large(work), QueueStore(work, exact_tasks=0)
    other.read()
    real = os.fdatasync

    def fail(_: int) -> None:
        monkeypatch.setattr(os, "fdatasync", real)
        if built_on:
            note(other, "built on it")
        if broken:
            faults.arm("rebase.before_write:1:EIO")
        raise OSError(errno.EIO, "the disk is gone")

    before = (work / "queue.journal").stat().st_ino
    monkeypatch.setattr(os, "fdatasync", fail)
    if broken:
        with pytest.raises(StateError) as caught:
            note(store, "first")
        assert caught.value.code == "queue.write_unsure"
    else:
        note(store, "first")
        assert (work / "queue.journal").stat().st_ino != before
    faults.arm("")
    texts = ["it begins", "more", "first", *(["built on it"] if built_on else [])]
    assert [one.event.text for one in QueueStore(work).history()] == texts
    note(store, "later")
    assert (work / "queue.journal").stat().st_ino != before, "a second sync would prove nothing"
    for one in (store, other):
        one.close()
    assert [one.event.text for one in read_log(work)] == [*texts, "later"]


def test_an_answer_rests_on_nothing_that_a_power_cut_undoes(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its writer died between write and sync; who finds it done already syncs it."""
    store, other = large(work), QueueStore(work, exact_tasks=0)
    other.read()
    synced: list[int] = []

    def die(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fdatasync", die)
    with pytest.raises(KeyboardInterrupt):
        note(store, "written and not synced")
    monkeypatch.setattr(os, "fdatasync", synced.append)
    assert other.transact(lambda board, _: Decision(board, board.revision)) == 3
    assert len(synced) == 1
    other.transact(lambda board, _: Decision(board, None))
    assert len(synced) == 1, "it was synced twice"


def test_a_line_that_was_taken_back_is_forgotten_by_who_had_read_it(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = QueueStore(work), QueueStore(work)
    real = os.fdatasync

    def fail(_: int) -> None:
        other.read()
        monkeypatch.setattr(os, "fdatasync", real)
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(StateError):
        store.transact(claim("a"))
    note(store, "n" * 400)
    journal = work / "queue.journal"
    assert other.transact(claim("b")) == "T001-B01"
    assert QueueStore(work).read() == other.read() == store.read()
    assert journal.exists()
    owner = store.read().subtask_by_id["T001-B01"].lease
    assert owner is not None
    assert owner.owner == "b"


def test_a_line_that_was_taken_back_does_not_return_with_a_power_cut(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = QueueStore(work)
    note(store)
    done: list[str] = []
    for name in ("ftruncate", "fsync"):
        real = getattr(os, name)

        def seen(*given: int, name: str = name, real: Callable[..., None] = real) -> None:
            done.append(name)
            real(*given)

        monkeypatch.setattr(os, name, seen)
    faults.arm("journal.after_write:1:ENOSPC")
    with pytest.raises(StateError, match=r"nothing was changed \["):
        note(store)
    assert done == ["ftruncate", "fsync"]
    before = (work / "queue.journal").stat().st_ino
    faults.arm("journal.after_write:1:ENOSPC,journal.before_fsync:1:EIO")
    with pytest.raises(
        StateError, match="nothing was changed, but a power cut may bring the change back"
    ):
        note(store)
    faults.arm("")
    note(store, "later")
    assert (work / "queue.journal").stat().st_ino != before, "that file is not to be trusted"
    assert [one.event.text for one in store.history()] == ["it begins", "more", "later"]


def test_a_repeated_line_of_the_same_length_is_not_taken_for_the_first(work: Path) -> None:
    """As after a line that was taken back and written again while nobody looked."""
    store = large(work)
    twin = shutil.copytree(work, work.with_name("twin"))
    note(store, "aaaa")
    assert [one.event.text for one in store.history()][-1] == "aaaa"
    note(QueueStore(twin, exact_tasks=0), "bbbb")
    written = (twin / "queue.journal").read_bytes()
    with (work / "queue.journal").open("r+b") as file:
        assert os.fstat(file.fileno()).st_size == len(written)
        file.write(written)
    note(store, "cccc")
    texts = [one.event.text for one in QueueStore(work).history()]
    assert texts == ["it begins", "more", "bbbb", "cccc"]
    assert [one.event.text for one in store.history()] == texts


def test_reading_inside_of_a_decision_keeps_the_lock(work: Path) -> None:
    store = QueueStore(work)
    free: list[bool] = []

    def decide(board: Board, now: datetime) -> Decision[None]:
        (work / QUEUE_FILE).write_text("garbage")
        store.read()
        lock = FileLock(work / f"{QUEUE_FILE}.lock")
        free.append(lock.try_acquire())
        lock.close()
        return Decision(board, None, (event(now, text="said"),))

    store.transact(decide)
    assert free == [False]


def test_an_index_that_somebody_kept_does_not_change(work: Path) -> None:
    store = QueueStore(work)
    index = store.read().subtask_by_id
    before = dict(index)
    store.transact(claim("a"))
    assert index == before
    assert store.read().subtask_by_id["T001-B01"].lease is not None


def test_reserved_space_is_given_back_and_never_read_as_text(work: Path) -> None:
    store, reader = large(work), QueueStore(work)
    for _ in range(12):
        note(store)
    journal = work / "queue.journal"
    assert journal.read_bytes().endswith(b"\0")
    assert reader.read().revision == store.read().revision
    assert QueueStore(work).read().revision == store.read().revision
    store.close()
    assert journal.read_bytes().endswith(b"}\n")


def test_a_full_disk_may_have_room_for_the_line_but_not_for_reserves(work: Path) -> None:
    store = large(work)
    faults.arm("reserve.before_write:1:ENOSPC,reserve.half_written:2:ENOSPC")
    for _ in range(14):
        note(store)
    faults.arm("")
    assert QueueStore(work).read().revision == store.read().revision == 16


@pytest.mark.parametrize("rest", [b"half a line", b"\0\0\0and its end\n", b"\0" + b"x\n" * 4000])
def test_what_a_power_cut_leaves_of_a_line_is_cleared(work: Path, rest: bytes) -> None:
    store = large(work)
    for _ in range(12):
        note(store)
    journal = work / "queue.journal"
    text = journal.read_bytes().rstrip(b"\0")
    revision = store.read().revision
    store.close()
    journal.write_bytes(text + rest + bytes(9000))
    after = QueueStore(work, exact_tasks=0)
    assert after.read().revision == revision
    note(after, "s")
    assert QueueStore(work).read().revision == revision + 1
    note(after, "m" * 6000)
    assert QueueStore(work).read().revision == revision + 2
    assert [one.event.text[0] for one in after.history()][-2:] == ["s", "m"]


def test_a_thread_that_waits_for_the_lock_keeps_no_other_from_reading(work: Path) -> None:
    store, other = QueueStore(work), QueueStore(work)
    waiting = threading.Thread(target=note, args=(store, "last"))
    before = set(threading.enumerate())
    seen: list[int] = []

    def decide(board: Board, now: datetime) -> Decision[None]:
        waiting.start()
        while "lock-waiter" not in {one.name for one in {*threading.enumerate()} - before}:
            time.sleep(0.01)
        seen.extend((store.read().revision, len(list(store.history()))))
        return Decision(board, None, (event(now, text="first"),))

    other.transact(decide)
    waiting.join()
    assert seen == [1, 1]
    assert [one.event.text for one in store.history()] == ["it begins", "first", "last"]
    assert store.read() == other.read()


def test_a_reader_beside_a_waiting_thread_refuses_an_older_journal_too(work: Path) -> None:
    old = (work / "queue.journal").read_bytes()
    with QueueStore(work) as store:
        note(store)
    (work / "queue.journal").write_bytes(old)
    beside = Beside(work, work / "queue.journal")
    with pytest.raises(StateError) as caught, beside.looking():
        pass
    assert caught.value.code == "queue.journal_older"
    beside.close()


def test_a_write_goes_on_after_short_ones_and_writes_nothing_of_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, sizes = os.pwrite, []

    def short(handle: int, data: bytes, offset: int) -> int:
        sizes.append(len(data))
        return real(handle, bytes(data[:3]), offset)

    monkeypatch.setattr(os, "pwrite", short)
    handle = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    write_at(handle, b"", 0, "test")
    write_at(handle, b"12345678", 1, "test")
    os.close(handle)
    assert sizes == [8, 5, 2]
    assert (tmp_path / "file").read_bytes() == b"\x0012345678"
