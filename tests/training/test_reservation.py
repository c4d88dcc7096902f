"""Memory on one machine is promised once."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ledger_holders import end, holder
from memory_eaters import MB, growing
from oodatcaa.errors import OodatcaaError, RefusedError, StateError
from oodatcaa.training.children import run_child
from oodatcaa.training.reservation import LEDGER_FILE, Reservation, Reservations

GB = 10**9


def test_what_fits_together_overlaps(tmp_path: Path) -> None:
    ledger = Reservations(tmp_path)
    with ledger.reserve(6 * GB, 16 * GB, wait=False), ledger.reserve(10 * GB, 16 * GB, wait=False):
        assert sum(r.bytes for r in ledger.holders()) == 16 * GB
    assert ledger.holders() == ()


def test_what_does_not_fit_names_the_holder(tmp_path: Path) -> None:
    ledger = Reservations(tmp_path)
    with (
        ledger.reserve(6 * GB, 16 * GB, label="training T003"),
        pytest.raises(RefusedError) as caught,
        ledger.reserve(11 * GB, 16 * GB, wait=False),
    ):
        pass
    assert "training T003" in caught.value.message
    assert "6.00 GB" in caught.value.message
    assert ledger.holders() == ()


def test_the_smaller_limit_of_two_counts(tmp_path: Path) -> None:
    ledger = Reservations(tmp_path)
    with (
        ledger.reserve(3 * GB, 4 * GB),
        pytest.raises(RefusedError),
        ledger.reserve(2 * GB, 16 * GB, wait=False),
    ):
        pass


def test_more_than_the_limit_is_refused_at_once(tmp_path: Path) -> None:
    with (
        pytest.raises(RefusedError, match="never fit"),
        Reservations(tmp_path).reserve(2 * GB, GB),
    ):
        pass


def test_a_waiter_hears_who_holds_and_gets_its_turn(tmp_path: Path) -> None:
    ledger = Reservations(tmp_path)
    told: list[tuple[Reservation, ...]] = []
    waiting, got = threading.Event(), threading.Event()

    def second() -> None:
        def on_wait(holders: tuple[Reservation, ...]) -> None:
            told.append(holders)
            waiting.set()

        with ledger.reserve(10, 10, label="second", on_wait=on_wait):
            got.set()

    with ledger.reserve(10, 10, label="first"):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(20)
        assert not got.is_set()
    assert got.wait(20)
    thread.join()
    assert [holder.label for holder in told[0]] == ["first"]


def test_a_small_one_does_not_overtake_a_large_one_that_waits(tmp_path: Path) -> None:
    ledger = Reservations(tmp_path)
    stop, waiting = threading.Event(), threading.Event()

    def large() -> None:
        with (
            pytest.raises(OodatcaaError, match="stopped"),
            ledger.reserve(9, 10, should_stop=stop.is_set, on_wait=lambda _: waiting.set()),
        ):
            pass

    with ledger.reserve(5, 10):
        thread = threading.Thread(target=large)
        thread.start()
        assert waiting.wait(20)
        with pytest.raises(RefusedError), ledger.reserve(1, 10, wait=False):
            pass
        stop.set()
        thread.join()
        with ledger.reserve(1, 10, wait=False):
            pass


def test_the_entry_of_a_killed_process_dies_with_it(tmp_path: Path) -> None:
    ledger = Reservations(tmp_path)
    with holder(tmp_path, 10, 10) as other:
        with pytest.raises(RefusedError), ledger.reserve(10, 10, wait=False):
            pass
        end(other)
        with ledger.reserve(10, 10, wait=False):
            pass


def test_a_second_child_is_held_to_what_the_first_left_and_then_waits_for_it_all(
    tmp_path: Path,
) -> None:
    ledger = Reservations(tmp_path / "ledger")
    limit, seen, told = 300 * MB, [], []

    def grow(allowance: Callable[[], int]) -> str:
        argv = [sys.executable, "-c", growing(4 * MB)]
        ended = run_child(
            argv, folder=tmp_path, log=tmp_path / "log", limit=limit, allowance=allowance
        )
        seen.append((ended.over_limit, ended.over_share(limit)))
        if ended.over_share(limit):
            assert ended.peak_bytes < 200 * MB, "not a second whole limit"
            raise RefusedError("reservation.outgrown", "more than its share", hint="-")
        return "ended"

    with holder(ledger.folder, 200 * MB, limit) as first:

        def on_wait(others: tuple[Reservation, ...]) -> None:
            told.append([other.pid for other in others])
            end(first)

        found = ledger.within(50 * MB, limit, grow, label="second", on_wait=on_wait)
    assert found == "ended"
    # What it reserved and half of what both left, from its first moment; then everything.
    assert seen == [(75 * MB, True), (limit, False)]
    assert told == [[first.pid]]
    assert ledger.holders() == ()


COUNT = """
import os, sys, time
from pathlib import Path
from oodatcaa.training.reservation import Reservations
folder = Path(sys.argv[1])
with Reservations(folder).reserve(4, 10):
    mine = folder / f"in-{os.getpid()}"
    mine.touch()
    print(len(list(folder.glob("in-*"))))
    time.sleep(0.02)
    mine.unlink()
"""


def test_sixteen_processes_never_exceed_the_limit_and_all_get_through(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", COUNT, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(16)
    ]
    seen = [int(process.communicate(timeout=120)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0] * 16
    assert max(seen) <= 2
    assert Reservations(tmp_path).holders() == ()


def test_a_share_holds_from_the_first_moment(tmp_path: Path) -> None:
    started: list[int] = []

    def allowance() -> int:
        # Once it runs nobody hears of its share any more, until it is gone.
        deadline = time.monotonic() + 6
        while started and psutil.pid_exists(started[0]) and time.monotonic() < deadline:
            time.sleep(0.02)
        return 50 * MB

    code = "held = b'x' * 100_000_000; import time; time.sleep(3)"
    ended = run_child(
        [sys.executable, "-c", code],
        folder=tmp_path,
        log=tmp_path / "log",
        limit=300 * MB,
        allowance=allowance,
        on_start=started.append,
    )
    assert ended.over_limit == 50 * MB
    assert ended.over_share(300 * MB)


def test_an_unreadable_ledger_is_never_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / LEDGER_FILE).write_text("{")
    with pytest.raises(StateError) as caught:
        Reservations(tmp_path).holders()
    assert "rm " in caught.value.hint
