"""Numbers of a run as its pages show them."""

from __future__ import annotations

from oodatcaa.views.cards import memory_table
from views import samples


def test_how_long_nobody_looked_is_said_where_it_was_measured() -> None:
    run = samples.make_run(longest_unwatched_seconds=0.0314)
    cells = [cell.strip() for cell in memory_table(run).split("|")]
    assert cells[cells.index("longest time between two looks at it") + 1] == "31 ms"
    assert "looks" not in memory_table(samples.make_run())
