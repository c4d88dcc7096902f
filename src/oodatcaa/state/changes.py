"""What one transaction changed: found by identity, because records are frozen and shared."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from itertools import compress
from operator import is_not
from typing import Generic, TypeVar

from pydantic import Field, PositiveInt

from oodatcaa.domain.base import Record, Utc
from oodatcaa.domain.board import SCHEMA_VERSION, Board, Event, Offer, Sprint
from oodatcaa.domain.task import Story, Subtask, Task
from oodatcaa.errors import StateError


class Order(Record):
    """Ids in their new order; written only when putting in place and appending do not give it."""

    stories: tuple[str, ...]
    subtasks: tuple[str, ...]


class Change(Record):
    """The difference between two boards. Tasks in it replace those of the same id, or are new."""

    stories: tuple[Story, ...] = ()
    subtasks: tuple[Subtask, ...] = ()
    removed: tuple[str, ...] = ()
    order: Order | None = None
    sprint: Sprint | None = None
    sprint_ended: bool = False
    offers: tuple[Offer, ...] | None = None

    @property
    def empty(self) -> bool:
        return not self.tasks and self.only_puts

    @property
    def only_puts(self) -> bool:
        """Whether it does nothing to the board but put tasks."""
        return (
            not self.removed
            and self.order is None
            and self.sprint is None
            and not self.sprint_ended
            and self.offers is None
        )

    @property
    def tasks(self) -> tuple[Task, ...]:
        return (*self.stories, *self.subtasks)

    def touched(self) -> set[str]:
        """Ids of tasks that it puts or removes, and `sprint`, `offers`, `order`."""
        found = {task.id for task in self.tasks} | set(self.removed)
        if self.sprint is not None or self.sprint_ended:
            found.add("sprint")
        if self.offers is not None:
            found.add("offers")
        if self.order is not None:
            found.add("order")
        return found


_NOTHING = Change()


class Transaction(Record):
    """One line of the journal."""

    seq: PositiveInt
    revision: PositiveInt
    at: Utc
    entries: int = Field(default=0, description="how many events it has")
    tasks: str = Field(default="", description="ids it puts, if it does nothing else to the board")
    clock: Utc | None = Field(default=None, description="what the clock said when it was behind")
    change: Change = _NOTHING
    events: tuple[Event, ...] = ()
    crc: str = ""

    @classmethod
    def of(
        cls,
        change: Change,
        events: tuple[Event, ...],
        *,
        seq: int,
        revision: int,
        at: datetime,
        clock: datetime | None = None,
    ) -> Transaction:
        """With the summary by which a reader can pass over what a later line replaces."""
        return cls(
            seq=seq,
            revision=revision,
            at=at,
            entries=len(events),
            tasks=" ".join([task.id for task in change.tasks]) if change.only_puts else "",
            clock=clock,
            change=change,
            events=events,
        )


TaskT = TypeVar("TaskT", Story, Subtask)


def difference(old: Board, new: Board) -> Change:
    """What turns `old` into `new`. Equal records count as unchanged."""
    known = _put_since(old, new)
    if known is not None:
        return known
    stories, stories_gone, stories_moved = _compare(old.stories, new.stories)
    subtasks, subtasks_gone, subtasks_moved = _compare(old.subtasks, new.subtasks)
    order = None
    if stories_moved or subtasks_moved:
        order = Order(
            stories=tuple(item.id for item in new.stories),
            subtasks=tuple(item.id for item in new.subtasks),
        )
    sprint_changed = new.sprint is not old.sprint and new.sprint != old.sprint
    offers_changed = new.offers is not old.offers and new.offers != old.offers
    removed = (*stories_gone, *subtasks_gone)
    if not (stories or subtasks or removed or order or sprint_changed or offers_changed):
        return _NOTHING
    return Change(
        stories=stories,
        subtasks=subtasks,
        removed=removed,
        order=order,
        sprint=new.sprint if sprint_changed else None,
        sprint_ended=sprint_changed and new.sprint is None,
        offers=new.offers if offers_changed else None,
    )


def _put_since(old: Board, new: Board) -> Change | None:
    """The change when `new` is `old` with some of its tasks replaced by `with_task`; else None."""
    since = new.since
    if (
        since is None
        or since.stories is not old.stories
        or since.subtasks is not old.subtasks
        or new.sprint is not old.sprint
        or new.offers is not old.offers
    ):
        return None
    stories: list[Story] = []
    subtasks: list[Subtask] = []
    for key, task in since.puts.items():
        if isinstance(task, Story):
            before: Task | None = old.story_by_id.get(key)
            if before != task:
                stories.append(task)
        else:
            before = old.subtask_by_id.get(key)
            if before != task:
                subtasks.append(task)
        if before is None:
            return None  # a new one: where it stands has to be looked at
    if not stories and not subtasks:
        return _NOTHING
    return Change(stories=tuple(stories), subtasks=tuple(subtasks))


def _compare(
    old: tuple[TaskT, ...], new: tuple[TaskT, ...]
) -> tuple[tuple[TaskT, ...], tuple[str, ...], bool]:
    if old is new:
        return (), (), False
    if len(old) == len(new):
        pairs = list(compress(zip(old, new, strict=True), map(is_not, old, new)))
        if all(a.id == b.id for a, b in pairs):
            return tuple(b for a, b in pairs if a != b), (), False
    before = {item.id: item for item in old}
    after = {item.id for item in new}
    puts = tuple(item for item in new if before.get(item.id) != item)
    gone = tuple(key for key in before if key not in after)
    expected = [key for key in before if key in after]
    expected += [item.id for item in puts if item.id not in before]
    return puts, gone, expected != [item.id for item in new]


def refuse_inconsistent(old: Board, new: Board, change: Change) -> None:
    """Raises StateError when `new` can not be what a decision about `old` returns."""
    problems: list[str] = []
    if new.revision != old.revision:
        problems.append(
            f"it is a change of revision {new.revision}, but the queue is at {old.revision}"
        )
    if change.removed or change.order or _grew(old, new):
        problems += structure_problems(new)
    else:
        parents = old.story_by_id.keys()
        problems += [
            f"{item.id}: its story {item.story} does not exist"
            for item in change.subtasks
            if item.story not in parents
        ]
        if change.offers is not None:
            problems += _offer_problems(new)
    if problems:
        raise StateError(
            "queue.inconsistent",
            f"the decision returned a board that can not be: {problems[0]}",
            hint="this is a defect of the program; nothing was written",
            details=problems,
        )


def _grew(old: Board, new: Board) -> bool:
    return len(old.stories) != len(new.stories) or len(old.subtasks) != len(new.subtasks)


def structure_problems(board: Board) -> list[str]:
    """What makes a board impossible whatever the rules say: ids that repeat or lead nowhere."""
    tasks: tuple[Task, ...] = (*board.stories, *board.subtasks)
    ids = [item.id for item in tasks]
    known = set(ids)
    problems = [f"{key}: the id is used {ids.count(key)} times" for key in _repeated(ids)]
    stories = {item.id for item in board.stories}
    for item in board.subtasks:
        if item.story not in stories:
            problems.append(f"{item.id}: its story {item.story} does not exist")
        elif not item.id.startswith(item.story + "-"):
            problems.append(f"{item.id}: its id does not belong to its story {item.story}")
    for task in tasks:
        problems += [
            f"{task.id}: depends on {other}, which does not exist"
            for other in task.depends_on
            if other not in known
        ]
    return problems + _offer_problems(board)


def _repeated(ids: list[str]) -> list[str]:
    seen: set[str] = set()
    again: dict[str, None] = {}
    for key in ids:
        if key in seen:
            again[key] = None
        seen.add(key)
    return list(again)


def _offer_problems(board: Board) -> list[str]:
    return [
        f"an offer names {offer.task}, which does not exist"
        for offer in board.offers
        if board.find(offer.task) is None
    ]


_ALONE = 2
"""Our attribute and the call's argument."""


class _Tasks(Generic[TaskT]):
    """Stories or subtasks by id and in their order. The row is copied for every board: to make it
    anew from the index would cost three times as much."""

    def __init__(self, tasks: Iterable[TaskT]) -> None:
        self.by_id: dict[str, TaskT] = {task.id: task for task in tasks}
        self._row: list[TaskT] = list(self.by_id.values())
        self._places: dict[str, int] = {key: place for place, key in enumerate(self.by_id)}

    def __len__(self) -> int:
        return len(self._row)

    def row(self) -> tuple[TaskT, ...]:
        return tuple(self._row)

    def begin_change(self) -> None:
        """Boards that were handed out have our dict as their index: while one of them, or an
        index of one, is in use, go on with a copy. CPython counts who uses a dict; `_ALONE` is
        what it counts for ours."""
        if sys.getrefcount(self.by_id) > _ALONE:
            self.by_id = self.by_id.copy()

    def put(self, task: TaskT) -> None:
        place = self._places.get(task.id)
        if place is None:
            self._places[task.id] = len(self._row)
            self._row.append(task)
        else:
            self._row[place] = task
        self.by_id[task.id] = task

    def without(self, keys: Collection[str]) -> _Tasks[TaskT]:
        return _Tasks(task for task in self._row if task.id not in keys)

    def ordered(self, keys: Iterable[str]) -> _Tasks[TaskT]:
        return _Tasks(self.by_id[key] for key in keys)


class Replica:
    """The board in memory, kept up by applying transactions.

    Lines that only put tasks are kept unread until a board is asked for: of many lines that put
    the same task only the last is ever parsed. Not thread-safe; `board` is a frozen value.
    """

    def __init__(self, board: Board, *, seq: int, at: datetime | None) -> None:
        self.seq = seq
        self.at = at
        self.revision = board.revision
        self._board: Board | None = board
        self._sprint = board.sprint
        self._offers = board.offers
        self._stories = _Tasks(board.stories)
        self._subtasks = _Tasks(board.subtasks)
        self._unread: dict[str, Callable[[], Change]] = {}

    @property
    def board(self) -> Board:
        if self._board is None:
            self.settle()
            self._board = Board.assembled(  # of records that were validated one by one
                {
                    "schema_version": SCHEMA_VERSION,
                    "revision": self.revision,
                    "sprint": self._sprint,
                    "stories": self._stories.row(),
                    "subtasks": self._subtasks.row(),
                    "offers": self._offers,
                }
            )
            # What it would compute again from its tuples, at ten times the cost.
            self._board.__dict__["story_by_id"] = self._stories.by_id
            self._board.__dict__["subtask_by_id"] = self._subtasks.by_id
        return self._board

    def _begin_change(self) -> None:
        self._board = None
        self._stories.begin_change()
        self._subtasks.begin_change()

    @property
    def size(self) -> int:
        self.settle()
        return len(self._stories) + len(self._subtasks)

    def defer(
        self, tasks: str, read: Callable[[], Change], *, seq: int, revision: int, at: datetime
    ) -> None:
        """Like `apply` for a line that only puts `tasks`; `read` parses it when it is needed."""
        for key in tasks.split():
            self._unread[key] = read
        self.seq, self.revision, self.at = seq, revision, at
        self._board = None

    def settle(self) -> None:
        """Parse what was kept unread. Raises StateError when a line can not be parsed."""
        if not self._unread:
            return
        unread = self._unread
        parsed = {
            read: {task.id: task for task in read().tasks}
            for read in dict.fromkeys(unread.values())
        }
        self._unread = {}  # only now: a line that can not be read must fail again, not be passed
        self._begin_change()
        for key, read in unread.items():
            task = parsed[read][key]
            if isinstance(task, Story):
                self._stories.put(task)
            else:
                self._subtasks.put(task)

    def apply(self, done: Transaction) -> None:
        self.settle()
        change = done.change
        self._begin_change()
        if change.removed:
            gone = frozenset(change.removed)
            self._stories = self._stories.without(gone)
            self._subtasks = self._subtasks.without(gone)
        for story in change.stories:
            self._stories.put(story)
        for subtask in change.subtasks:
            self._subtasks.put(subtask)
        if change.order is not None:
            self._stories = self._stories.ordered(change.order.stories)
            self._subtasks = self._subtasks.ordered(change.order.subtasks)
        if change.sprint is not None or change.sprint_ended:
            self._sprint = change.sprint
        if change.offers is not None:
            self._offers = change.offers
        self.seq, self.revision, self.at = done.seq, done.revision, done.at


def by_id(board: Board) -> Mapping[str, Task]:
    return {**board.story_by_id, **board.subtask_by_id}
