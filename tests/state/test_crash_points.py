"""A process that dies at any point of any write leaves everything as it was before or after."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from crash_points import points_in_source
from oodatcaa.domain.board import Board, Decision
from oodatcaa.domain.task import SubtaskStatus
from oodatcaa.kit import faults
from oodatcaa.state.log import read_log
from oodatcaa.state.schema import schema_problems
from oodatcaa.state.snapshot import QUEUE_FILE
from oodatcaa.state.store import QueueStore
from queue_making import begin, claim, event, release, sprint

Scenario = Callable[[QueueStore, "Acks"], None]


@dataclass
class Acks:
    """Tells the test, through a file that a kill can not take back, what was promised."""

    path: Path

    def __call__(self, revision: int) -> None:
        with self.path.open("a") as file:
            file.write(f"{revision}\n")

    def last(self) -> int:
        return int(self.path.read_text().split()[-1]) if self.path.exists() else 0


def open_store(work: Path) -> QueueStore:
    """Everything that a store does only now and then, it does here often."""
    return QueueStore(work, log_bytes=1500, journal_bytes=1000)


def open_lagging(work: Path) -> QueueStore:
    return QueueStore(work, log_bytes=1500, journal_bytes=1000, exact_tasks=2)


def everyday(store: QueueStore, ack: Acks) -> None:
    if store.read().revision == 0:
        store.transact(begin(6))
        ack(store.read().revision)
    for _ in range(5):
        task = store.transact(claim("a"))
        if task is None:
            break
        ack(store.read().revision)
        store.transact(release(task, "a", SubtaskStatus.DONE))
        ack(store.read().revision)
    store.close()


def edited(store: QueueStore, ack: Acks) -> None:
    everyday(store, ack)
    path = store.work_dir / QUEUE_FILE
    path.write_text(path.read_text().replace("Build 2", "Bauen 2"))
    store.read()
    path.write_text(path.read_text().replace("Build 3", '"'))
    store.read()
    path.unlink()
    store.transact(lambda old, now: Decision(old, None, (event(now),)))
    ack(store.read().revision)
    store.close()


def closing(store: QueueStore, ack: Acks) -> None:
    everyday(store, ack)

    def close(old: Board, now: datetime) -> Decision[None]:
        kept = old.evolve(sprint=sprint(2))
        return Decision(kept, None, (event(now, "sprint", "closed"), event(now, "sprint", "new")))

    board = store.read()
    if board.sprint is not None and board.sprint.number == 1:
        store.archive_sprint(1, close)
    ack(store.read().revision)
    store.transact(lambda old, now: Decision(old, None, (event(now),)))
    ack(store.read().revision)
    store.close()


SCENARIOS: dict[str, tuple[Callable[[Path], QueueStore], Scenario]] = {
    "everyday": (open_store, everyday),
    "lagging": (open_lagging, everyday),
    "edited": (open_store, edited),
    "closing": (open_store, closing),
}


def run(name: str, work: Path, armed: str) -> int:
    """The scenario in a process of its own; its exit status as os.waitpid has it."""
    child = os.fork()
    if child == 0:
        code = 9
        try:
            faults.arm(armed)
            opener, scenario = SCENARIOS[name]
            scenario(opener(work), Acks(work.parent / "acks"))
            (work.parent / "points").write_text(json.dumps(faults.passed()))
            code = 0
        finally:
            if code:
                traceback.print_exc()
            os._exit(code)
    return os.waitpid(child, 0)[1]


def check(work: Path, acked: int) -> None:
    """All invariants, once as a reader finds them and once after the next transaction."""
    board = QueueStore(work).read()
    assert board.revision >= acked, "a transition that had been promised is lost"
    with open_store(work) as store:
        store.transact(lambda old, now: Decision(old, None, (event(now, text="afterwards"),)))
        after = store.read()
        assert after.revision == board.revision + 1 or after.revision == board.revision + 2
        history = list(store.history())
    places = [(one.seq, one.index) for one in history]
    assert len(set(places)) == len(places)
    assert places == sorted(places)
    logged = [(one.seq, one.index) for one in read_log(work)]
    assert logged == places, "log and history differ"
    assert list(read_log(work)) == history
    claims = [one.event.subject for one in history if one.event.kind == "claim"]
    assert len(claims) == len(set(claims)), "claimed twice"
    document = json.loads((work / QUEUE_FILE).read_text())
    assert schema_problems(document) == []
    assert document["exact"] is True
    assert (
        Board.model_validate(
            {key: document[key] for key in ("revision", "sprint", "stories", "subtasks", "offers")}
        )
        == after
    )
    archived = work / "archive" / "sprint-1"
    assert archived.exists() == (after.sprint is not None and after.sprint.number == 2)
    if archived.exists():
        assert (archived / "AGENT_LOG.md").exists()
        assert next(one.event.text for one in read_log(archived)) == "it begins"
        assert history[0].event.text == "closed"
    elif history[0].event.text != "afterwards":  # unless it died before the first commit
        assert history[0].event.text == "it begins"
    assert not list(work.glob("SPRINT_QUEUE.rejected*.tmp"))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where that is possible: a kill (not a power cut) can not tell the difference."""
    shared = Path("/dev/shm")
    if not (shared.is_dir() and os.access(shared, os.W_OK)):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=shared, prefix="oodatcaa-test-") as made:
        yield Path(made)


def points(name: str, folder: Path) -> dict[str, int]:
    home = folder / "trace"
    home.mkdir()
    assert run(name, home / "work", "trace") == 0
    check(home / "work", Acks(home / "acks").last())
    found = json.loads((home / "points").read_text())
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("name", "at_least"), [("everyday", 25), ("lagging", 25), ("edited", 30), ("closing", 32)]
)
def test_killed_at_every_point(name: str, at_least: int, folder: Path) -> None:
    found = points(name, folder)
    assert len(found) >= at_least, sorted(found)
    assert {"events.after_write", "rebase.after_rename", "rotate.after_rename"} <= found.keys()
    for number, (point, times) in enumerate(found.items()):
        home = folder / point
        home.mkdir()
        status = run(name, home / "work", f"{point}:{(times + 1) // 2}")
        assert os.WIFSIGNALED(status), point
        assert os.WTERMSIG(status) == signal.SIGKILL
        check(home / "work", Acks(home / "acks").last())
        if number % 4 == 0:  # and the work can be done to its end from there
            assert run(name, home / "work", "") == 0, point
            check(home / "work", Acks(home / "acks").last())


def test_the_scenarios_come_to_every_point_of_the_source(folder: Path) -> None:
    reached: set[str] = set()
    for name in SCENARIOS:
        (folder / name).mkdir()
        reached |= points(name, folder / name).keys()
    assert reached == points_in_source()
