"""What waits is told to people in few lines, whatever the number of tasks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from oodatcaa.domain.offering import briefly

REASONS = st.dictionaries(
    st.integers(1, 999).map("T{:03d}".format), st.sampled_from(["WIP", "T001", "a person"])
)


@given(REASONS, st.integers(1, 12))
def test_no_task_is_forgotten(waiting: dict[str, str], most: int) -> None:
    lines = briefly(waiting, most)
    assert len(lines) <= (most + 1) * len(set(waiting.values()))
    for reason in set(waiting.values()):
        told = sum(1 for task, why in lines if task and why == reason)
        more = [why for task, why in lines if not task and why.endswith(f" more: {reason}")]
        hidden = sum(int(why.split()[0]) for why in more)
        assert len(more) <= 1
        assert told + hidden == list(waiting.values()).count(reason)
    assert [task for task, _ in lines if task] == [t for t in waiting if (t, waiting[t]) in lines]


def test_the_line_that_stands_for_many_says_how_many() -> None:
    waiting = {f"T{n:03d}": "waits for a free builder" for n in range(1, 31)}
    assert briefly(waiting, 2) == [
        ("T001", "waits for a free builder"),
        ("T002", "waits for a free builder"),
        ("", "28 more: waits for a free builder"),
    ]
