"""The board in memory never shows a task older than the transaction it says it is at."""

from __future__ import annotations

import pytest

from oodatcaa.domain.board import Board
from oodatcaa.domain.task import SubtaskStatus
from oodatcaa.state.changes import Change, Replica
from queue_making import START, story, subtask


def test_a_line_that_could_not_be_read_is_read_again() -> None:
    replica = Replica(Board(stories=(story(),), subtasks=(subtask(),)), seq=1, at=START)
    done = subtask(status=SubtaskStatus.IN_PROGRESS)
    line = Change(subtasks=(done,))
    fails = [OSError("not now"), OSError("not now"), None]

    def read() -> Change:
        error = fails.pop(0)
        if error is not None:
            raise error
        return line

    replica.defer("T001-B01", read, seq=2, revision=2, at=START)
    for _ in range(2):
        with pytest.raises(OSError, match="not now"):
            _ = replica.board
    assert replica.board.subtasks == (done,)


@pytest.mark.parametrize("indexed", [False, True], ids=["first look", "with an index"])
def test_a_task_is_put_in_its_place_or_at_the_end(indexed: bool) -> None:
    steps = tuple(subtask(number=number) for number in range(1, 5))
    board = Board(stories=(story(),), subtasks=steps)
    if indexed:
        assert [*board.subtask_by_id] == [one.id for one in steps]
    other = subtask(number=3, title="another title")
    assert board.with_task(other).subtasks == (*steps[:2], other, steps[3])
    new = subtask(number=7)
    assert board.with_task(new).with_task(other).subtasks == (*steps[:2], other, steps[3], new)
    assert board.with_task(story(2)).stories == (story(), story(2))
    doubled = Board(stories=(story(),), subtasks=(steps[0], steps[0], steps[1]))
    if indexed:
        assert len(doubled.subtask_by_id) == 2
    second = subtask(number=2, title="another title")
    assert doubled.with_task(second).subtasks == (steps[0], steps[0], second)
