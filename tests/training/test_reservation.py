"""Memory on one machine is promised once."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from oodatcaa.errors import OodatcaaError, RefusedError, StateError
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


HOLD = """
import sys, time
from pathlib import Path
from oodatcaa.training.reservation import Reservations
with Reservations(Path(sys.argv[1])).reserve(10, 10):
    print("held", flush=True)
    time.sleep(100)
"""


def test_the_entry_of_a_killed_process_dies_with_it(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    ledger = Reservations(tmp_path)
    with pytest.raises(RefusedError), ledger.reserve(10, 10, wait=False):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with ledger.reserve(10, 10, wait=False):
        pass


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


def test_an_unreadable_ledger_is_never_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / LEDGER_FILE).write_text("{")
    with pytest.raises(StateError) as caught:
        Reservations(tmp_path).holders()
    assert "rm " in caught.value.hint
