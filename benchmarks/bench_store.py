"""The queue side by side with what one would write first: filelock + json, and SQLite.

Every worker is a process that claims and releases tasks of about 0.9 KB until the time is over;
every commit is fsynced. Then a crowd claims each task once, and the commands that people type all
day are started from the shell. Prints Markdown; `--write` puts it into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from page import measured_with, write_section
from sides import DATABASE, OURS, PLAIN, SIDES, Side
from startup import LIMIT_MS, Timed, time_commands

CROWD_TASKS = 1000
CROWD_LIMIT_SECONDS = 2.0
PLAIN_GOAL, DATABASE_GOAL = 50, 0.5


@dataclass(frozen=True)
class Outcome:
    """What the workers of one race report. A wait is the time of one claim or release call."""

    by_worker: list[int]
    seconds: float
    waits: list[float]
    twice: int = 0
    missed: int = 0

    @property
    def rate(self) -> float:
        return sum(self.by_worker) / self.seconds

    @property
    def longest_ms(self) -> float:
        return max(self.waits) * 1e3

    def wait_ms(self, share: float) -> float:
        ordered = sorted(self.waits)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3


def _worker(
    name: str, folder: str, number: int, seconds: float | None, barrier: object, out: object
) -> None:
    side: Side = SIDES[name](Path(folder))
    claimed: list[str] = []
    waits: list[float] = []
    barrier.wait()  # type: ignore[attr-defined]
    end = None if seconds is None else time.perf_counter() + seconds
    while end is None or time.perf_counter() < end:
        before = time.perf_counter()
        task = side.claim(f"worker-{number}")
        waits.append(time.perf_counter() - before)
        if task is None:
            break
        claimed.append(task)
        if seconds is not None:
            before = time.perf_counter()
            side.release(task)
            waits.append(time.perf_counter() - before)
    side.close()
    out.put((claimed, waits))  # type: ignore[attr-defined]


def race(name: str, tasks: int, workers: int, seconds: float | None, place: Path | None) -> Outcome:
    """Claim and release for `seconds`; without them claim each task once until none is left."""
    with tempfile.TemporaryDirectory(dir=place) as made:
        SIDES[name].fill(Path(made), tasks)
        context = multiprocessing.get_context("fork")
        barrier, out = context.Barrier(workers + 1), context.Queue()
        # The workers stand for programs of their own: they must not pay for this one's heap.
        gc.collect()
        gc.freeze()
        people = [
            context.Process(target=_worker, args=(name, made, n, seconds, barrier, out))
            for n in range(workers)
        ]
        for one in people:
            one.start()
        barrier.wait()
        begun = time.perf_counter()
        found = [out.get() for _ in people]
        took = time.perf_counter() - begun
        for one in people:
            one.join()
    claims = Counter(task for claimed, _ in found for task in claimed)
    return Outcome(
        by_worker=[len(claimed) for claimed, _ in found],
        seconds=took,
        waits=[wait for _, waits in found for wait in waits],
        twice=sum(1 for count in claims.values() if count > 1) if seconds is None else 0,
        missed=tasks - len(claims) if seconds is None else 0,
    )


def side_by_side(
    tasks: int, workers: int, seconds: float, place: Path | None
) -> dict[str, Outcome]:
    return {name: race(name, tasks, workers, seconds, place) for name in SIDES}


def race_table(got: dict[str, Outcome]) -> list[str]:
    lines = [
        "| store | claims/s | p50 ms | p99 ms | longest ms | fewest / most claims of a worker |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, one in got.items():
        lines.append(
            f"| {name} | {one.rate:.0f} | {one.wait_ms(0.5):.1f} | {one.wait_ms(0.99):.1f} "
            f"| {one.longest_ms:.0f} | {min(one.by_worker)} / {max(one.by_worker)} |"
        )
    return lines


def crowd_table(got: dict[str, Outcome]) -> list[str]:
    lines = [
        "| store | claims/s | claimed twice | missed | p50 ms | p99 ms | longest ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, one in got.items():
        lines.append(
            f"| {name} | {one.rate:.0f} | {one.twice} | {one.missed} | {one.wait_ms(0.5):.0f} "
            f"| {one.wait_ms(0.99):.0f} | {one.longest_ms:.0f} |"
        )
    return lines


def command_table(got: list[Timed]) -> list[str]:
    lines = ["| command | median ms | longest ms | runs |", "| --- | ---: | ---: | ---: |"]
    for one in got:
        lines.append(
            f"| {one.name} | {one.median_ms:.0f} | {one.longest_ms:.0f} | {len(one.seconds)} |"
        )
    return lines


def goals(
    small: dict[str, Outcome], crowd: dict[str, Outcome], commands: list[Timed]
) -> tuple[list[str], bool]:
    """Goal by goal, what was measured; and whether what must never fail did not fail."""
    ours, plain, base = small[OURS], small[PLAIN], small[DATABASE]
    packed = crowd[OURS]
    exact = not packed.twice and not packed.missed
    slowest = max(commands, key=lambda one: one.median_ms)
    rows = [
        (
            f"claims/s, at least {PLAIN_GOAL}x {PLAIN}",
            f"{ours.rate / plain.rate:.0f}x",
            ours.rate >= PLAIN_GOAL * plain.rate,
        ),
        (
            f"claims/s, at least {DATABASE_GOAL}x SQLite",
            f"{ours.rate / base.rate:.2f}x",
            ours.rate >= DATABASE_GOAL * base.rate,
        ),
        (
            "longest wait, below SQLite's",
            f"{ours.longest_ms:.0f} ms against {base.longest_ms:.0f} ms",
            ours.longest_ms < base.longest_ms,
        ),
        (
            "the crowd claims every task exactly once",
            f"{packed.twice} twice, {packed.missed} missed",
            exact,
        ),
        (
            f"the crowd's longest wait, at most {CROWD_LIMIT_SECONDS:g} s",
            f"{packed.longest_ms / 1e3:.2f} s",
            packed.longest_ms <= CROWD_LIMIT_SECONDS * 1e3,
        ),
        (
            f"every command, at most {LIMIT_MS} ms (median)",
            f"slowest: {slowest.name}, {slowest.median_ms:.0f} ms",
            slowest.median_ms <= LIMIT_MS,
        ),
    ]
    lines = ["| goal | measured | |", "| --- | --- | --- |"]
    lines += [f"| {goal} | {got} | {'met' if met else 'missed'} |" for goal, got, met in rows]
    return lines, exact


def section(given: argparse.Namespace) -> tuple[str, bool]:
    """The whole section as Markdown, and whether every task was claimed exactly once."""
    command = "make bench-store"
    extra = [f"SQLite {sqlite3.sqlite_version}"]
    under = measured_with(command, ("pydantic", "filelock", "typer"), extra)
    workers, seconds, place = given.processes, given.seconds, given.place
    races = {tasks: side_by_side(tasks, workers, seconds, place) for tasks in given.tasks}
    crowd = {name: race(name, CROWD_TASKS, given.crowd, None, place) for name in (DATABASE, OURS)}
    commands = time_commands(given.runs, place)
    verdicts, exact = goals(races[given.tasks[0]], crowd, commands)
    lines = ["## The queue", "", under, "", *verdicts, ""]
    for tasks, got in races.items():
        title = f"{tasks:,} tasks of 0.9 KB, {workers} processes, claim + release for {seconds:g} s"
        lines += [f"### {title}", "", *race_table(got), ""]
    lines += [
        "A wait is the time of one whole call, claim or release, as its worker sees it. Every",
        "commit is fsynced. SQLite keeps a status index and the task as a JSON column.",
        "",
        f"### {given.crowd} processes, {CROWD_TASKS:,} tasks, each to be claimed once",
        "",
        *crowd_table(crowd),
        "",
        "### Commands from the shell at 1,000 tasks, start-up included",
        "",
        *command_table(commands),
    ]
    return "\n".join(lines), exact


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--crowd", type=int, default=64, help="processes that claim each task once")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--runs", type=int, default=15, help="starts of each command")
    parser.add_argument("--place", type=Path, help="a folder on the disk to measure")
    parser.add_argument("--write", action="store_true", help="put it into docs/benchmarks.md")
    given = parser.parse_args()
    text, exact = section(given)
    print(text)
    if given.write:
        write_section("bench-store", text)
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
