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
