"""Random work of several stores on one folder against a plain model of what must come out."""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as some
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from oodatcaa.domain.board import Board, Decision
from oodatcaa.domain.task import Task
from oodatcaa.state.log import read_log
from oodatcaa.state.snapshot import QUEUE_FILE
from oodatcaa.state.store import QueueStore
from queue_making import event, sprint, story, subtask

stores = some.integers(0, 2)
EXACT = (200, 0, 3)
"""Of each store: up to so many tasks its views are never behind."""
numbers = some.integers(1, 5)


class Queue(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.work = Path(self.folder.name) / "work"
        self.stores = [self.open(number) for number in range(3)]
        self.board = Board()
        self.texts: list[str] = []
        self.sprints = 0
        self.lagging = False

    def open(self, number: int) -> QueueStore:
        return QueueStore(self.work, exact_tasks=EXACT[number], log_bytes=1500, journal_bytes=2500)

    def commit(self, number: int, board: Board, *texts: str) -> None:
        def decide(old: Board, now: datetime) -> Decision[None]:
            assert old == self.board
            return Decision(board, None, tuple(event(now, text=text) for text in texts))

        self.stores[number].transact(decide)
        if board != self.board or texts:
            self.board = board.evolve(revision=self.board.revision + 1)
            self.texts += texts
            size = len(board.stories) + len(board.subtasks)
            self.lagging = size > EXACT[number]

    @initialize()
    def begin(self) -> None:
        self.sprints = 1
        self.commit(0, Board(sprint=sprint(1), stories=(story(1), story(2))), "begin")

    @rule(store=stores, parent=some.sampled_from([1, 2]), number=numbers, minutes=numbers)
    def put(self, store: int, parent: int, number: int, minutes: int) -> None:
        task: Task = subtask(parent, number, estimate_minutes=minutes)
        self.commit(store, self.board.with_task(task))

    @rule(store=stores, goal=some.text(max_size=5))
    def edit_story(self, store: int, goal: str) -> None:
        self.commit(store, self.board.with_task(story(1, goal=goal)), "edited", "twice")

    @rule(store=stores, places=some.randoms())
    def shuffle_and_remove(self, store: int, places: object) -> None:
        tasks = list(self.board.subtasks)
        places.shuffle(tasks)  # type: ignore[attr-defined]
        self.commit(store, self.board.evolve(subtasks=tuple(tasks[:4])), "shuffled")

    @rule(store=stores)
    def only_say(self, store: int) -> None:
        self.commit(store, self.board, "said " + "much " * 500)  # for rotations and new bases

    @rule(store=stores)
    def reopen(self, store: int) -> None:
        self.stores[store].close()
        self.stores[store] = self.open(store)

    @precondition(lambda self: self.board.subtasks and self.sprints)
    @rule(store=stores)
    def edit_by_hand(self, store: int) -> None:
        for one in self.stores:
            one.close()
        path = self.work / QUEUE_FILE
        first = self.board.stories[0]
        text = path.read_text()
        changed = text.replace(f'"title": "{first.title}"', '"title": "by hand"', 1)
        path.write_text(changed)
        self.stores[store].read()
        if changed != text:
            revision = self.board.revision + 1
            board = self.board.with_task(first.evolve(title="by hand"))
            self.board = board.evolve(revision=revision)
            self.texts.append(f"{QUEUE_FILE} was edited")

    @rule(store=stores)
    def close_sprint(self, store: int) -> None:
        def decide(old: Board, now: datetime) -> Decision[None]:
            board = old.evolve(sprint=sprint(self.sprints + 1))
            return Decision(board, None, (event(now, text="next"),))

        before = list(self.texts)
        folder, _ = self.stores[store].archive_sprint(self.sprints, decide)
        assert [one.event.text for one in read_log(folder)] == before
        self.sprints += 1
        self.texts = ["next"]
        self.board = self.board.evolve(
            sprint=sprint(self.sprints), revision=self.board.revision + 1
        )

    @invariant()
    def all_agree(self) -> None:
        for store in self.stores:
            assert store.read() == self.board
            assert [one.event.text for one in store.history()] == self.texts
        if self.work.exists():
            logged = [one.event.text for one in read_log(self.work)]
            assert logged == self.texts[: len(logged)]
            assert self.lagging or logged == self.texts

    def teardown(self) -> None:
        for store in self.stores:
            store.close()
        if self.work.exists():
            assert [one.event.text for one in read_log(self.work)] == self.texts
        assert self.open(0).read() == self.board
        self.folder.cleanup()


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)
