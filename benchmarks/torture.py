"""Dozens of processes work on one queue while they are killed, stopped and lied to.

They claim, submit, expire, edit and close sprints at random, legally and not. They die by SIGKILL
at random moments and at every crash point of the source, their writes are cut short, their disk is
full or broken, their folder can not be written, their clocks jump, and they are stopped for longer
than their leases last; a person's hand damages SPRINT_QUEUE.json meanwhile. After each such event
every invariant is checked: no transition lost, no task claimed twice, no late result accepted, log
and queue agree, every file can be read. Exit code 1 = violations, or something that never happened.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.context import ForkProcess
from pathlib import Path

from auditor import Auditor
from victims import FAILING, POINTS, TTL_SECONDS, Fate, begin, live, open_store

from oodatcaa.domain.board import Decision
from oodatcaa.state.snapshot import QUEUE_FILE

HANDS = ("garbage", "cut", "conflict", "restore", "deletion", "title")
READ_ONLY_SECONDS = 0.15
COMPLETE_SECONDS = 100
"""From this length on, a run in which some crash point was never struck has failed."""
_AGAIN = "OODATCAA_TORTURE_UNPRIVILEGED"


@dataclass
class Toll:
    """What was done to whom."""

    kills: int = 0
    struck: Counter[str] = field(default_factory=Counter)
    stops: int = 0
    read_only: int = 0
    hands: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


class Torture:
    def __init__(self, work: Path, processes: int, tasks: int, seed: int) -> None:
        self.work = work
        self.processes = processes
        self.chance = random.Random(seed)
        self.toll = Toll()
        self.stop = work.parent / "stop"
        self.people: dict[int, tuple[ForkProcess, Fate]] = {}
        self.killed: set[int] = set()
        self.kept: list[bytes] = []
        self.born = 0
        self.elapsed = 0.0
        self.overtime = False
        self.armed: Counter[str] = Counter()
        with open_store(work) as store:
            store.transact(
                lambda old, _: Decision(begin(tasks).evolve(revision=old.revision), None)
            )
        self.auditor = Auditor(work)

    def run(self, seconds: float) -> None:
        """For `seconds`; a long run goes on until every crash point was struck, at most thrice."""
        begun = time.monotonic()
        while self.elapsed < seconds or (
            seconds >= COMPLETE_SECONDS and self.missing() and self.elapsed < 3 * seconds
        ):
            self.elapsed = time.monotonic() - begun
            self.overtime = self.elapsed >= seconds
            while len(self.people) < self.processes:
                self.bear()
            time.sleep(0.01)
            acted = self.act()
            if self.bury() or acted:
                self.auditor.look()
        self.finish()

    def end_all(self) -> None:
        """Whatever went wrong here, nobody is left behind."""
        for one, _ in self.people.values():
            one.kill()
            one.join()

    def missing(self) -> list[str]:
        return [point for point in POINTS if not self.toll.struck[point]]

    def bear(self) -> None:
        self.born += 1
        fate = self.fate()
        context = multiprocessing.get_context("fork")
        args = (self.work, f"w{self.born}", fate, self.stop)
        one = context.Process(target=live, args=args)
        one.start()
        assert one.pid is not None
        self.people[one.pid] = (one, fate)

    def fate(self) -> Fate:
        chance = self.chance
        seed = chance.randrange(1 << 30)
        large = chance.random() < 0.5
        dice = chance.random()
        if dice < 0.6 or self.overtime:  # what was struck least comes first
            done = self.toll.struck
            point = min(POINTS, key=lambda one: (done[one] + self.armed[one], chance.random()))
            self.armed[point] += 1
            return Fate("crash", point, chance.randint(1, 2), seed, large)
        if dice < 0.72:
            error = chance.choice(["ENOSPC", "EIO"])
            return Fate(error, chance.choice(FAILING), chance.randint(1, 6), seed, large)
        kind = "short" if dice < 0.8 else "clock" if dice < 0.9 else "none"
        return Fate(kind, seed=seed, large=large)

    def act(self) -> bool:
        """One misfortune, perhaps; False when nothing happened."""
        try:
            return self._act(self.chance.choice(list(self.people)))
        except ProcessLookupError:
            # It died by itself, and multiprocessing collects the dead whenever it starts another.
            return False

    def _act(self, pid: int) -> bool:
        dice = self.chance.random()
        fate = self.people[pid][1]
        bystander = fate.kind != "crash" or self.toll.struck[fate.point] > 0
        if dice < (0.6 if self.overtime and bystander else 0.12):
            os.kill(pid, signal.SIGKILL)
            self.killed.add(pid)
            self.toll.kills += 1
        elif dice < 0.2:
            os.kill(pid, signal.SIGSTOP)
            self.toll.stops += 1
            # Not by the loop: it may be waiting for the very lock that the sleeper holds.
            timer = threading.Timer(1.2 * TTL_SECONDS, self.wake, (pid,))
            timer.daemon = True
            timer.start()
        elif dice < 0.28:
            self.hand()
        elif (dice < 0.31 and os.geteuid() != 0) or (dice < 0.31 and _obeys_modes()):
            self.forbid()
        else:
            return False
        return True

    def hand(self) -> None:
        """What an editor, git or a script does to the queue file, without asking."""
        path = self.work / QUEUE_FILE
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return
        self.kept = [*self.kept[-20:], data]
        what = min(HANDS, key=lambda one: (self.toll.hands[one], self.chance.random()))
        if what == "garbage":
            path.write_bytes(b"\xff not json")
        elif what == "cut":
            path.write_bytes(data[: len(data) // 2])
        elif what == "conflict":
            path.write_bytes(data.replace(b'"stories"', b"<<<<<<< HEAD\n=======\n", 1))
        elif what == "restore":
            path.write_bytes(self.chance.choice(self.kept))
        elif what == "deletion":
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(data.replace(b'"Torture"', b'"Torture by hand"', 1))
        self.toll.hands[what] += 1

    def forbid(self) -> None:
        """For a moment nobody may write in the folder, nor into most of its files."""
        files = [path for path in self.work.iterdir() if path.is_file()]
        self.work.chmod(0o555)
        for path in files:
            _mode(path, 0o444)
        time.sleep(READ_ONLY_SECONDS)
        self.work.chmod(0o755)
        for path in files:
            _mode(path, 0o644)
        self.toll.read_only += 1

    def wake(self, pid: int) -> None:
        if pid in self.people:
            os.kill(pid, signal.SIGCONT)

    def bury(self) -> bool:
        gone = [pid for pid, (one, _) in self.people.items() if not one.is_alive()]
        for pid in gone:
            one, fate = self.people.pop(pid)
            one.join()
            by_us = pid in self.killed
            self.killed.discard(pid)
            self.armed[fate.point] -= fate.kind == "crash"
            if one.exitcode == -signal.SIGKILL and not by_us:
                self.toll.struck[fate.point] += 1
            elif one.exitcode not in (0, -signal.SIGKILL):
                self.toll.violations.append(f"a process ended with exit code {one.exitcode}")
        return bool(gone)

    def finish(self) -> None:
        self.stop.touch()
        for pid, (one, _) in self.people.items():
            os.kill(pid, signal.SIGCONT)
            one.join(60)
            if one.exitcode is None:
                os.kill(pid, signal.SIGUSR1)
                time.sleep(0.5)
                one.kill()
                self.toll.violations.append("a process did not come to its end")
        self.bury()
        self.auditor.last_look()
        self.toll.violations += self.auditor.violations


def _mode(path: Path, mode: int) -> None:
    try:
        path.chmod(mode)
    except FileNotFoundError:  # a temp file that was renamed meanwhile
        return


def _obeys_modes() -> bool:
    return os.environ.get(_AGAIN) == "1"


def without_privileges() -> None:
    """Root writes into read-only folders too: start again without that right."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() == 0 and not _obeys_modes() and setpriv is not None:
        os.environ[_AGAIN] = "1"
        drop = "--bounding-set=-dac_override,-dac_read_search"
        os.execv(setpriv, [setpriv, drop, "--inh-caps=-all", sys.executable, *sys.argv])


def report(torture: Torture, given: argparse.Namespace, seed: int) -> int:
    toll, audit = torture.toll, torture.auditor
    counts, struck = audit.counts, torture.toll.struck
    missing = torture.missing()
    crashes = sum(struck.values())
    print(
        f"seed {seed}, {given.processes} processes at a time, {torture.born} in all, "
        f"{torture.elapsed:.0f} s, every invariant checked {audit.looks} times"
    )
    print(f"killed with -9: {toll.kills + crashes} ({toll.kills} at random moments)")
    print(f"transitions: {audit.moves.total()} {dict(audit.moves)}")
    print(f"violations: {len(toll.violations)}")
    for line in toll.violations[:40]:
        print(f"  {line}")
    refusals = counts["queue.unwritable"] + counts["queue.write_failed"]
    rows = {
        "kill -9 at a random moment": toll.kills,
        f"kill -9 at a crash point ({len(POINTS) - len(missing)} of {len(POINTS)})": crashes,
        "short write": counts["short write"],
        "ENOSPC": counts["ENOSPC"],
        "EIO": counts["EIO"],
        "read-only folder": toll.read_only,
        "transaction refused for the disk": refusals,
        "view reported as behind": counts["queue.views_behind"],
        "clock jumped ahead": counts["clock forward"],
        "clock jumped back": counts["clock back"],
        "SIGSTOP beyond the lease, SIGCONT": toll.stops,
        "late result refused": counts["late result refused"],
        "illegal board refused": counts["illegal board refused"],
        "sprint closed": counts["sprint closed"],
        **{f"outside hand: {what}": toll.hands[what] for what in HANDS},
    }
    print("\n| kind | times |\n| --- | ---: |")
    for kind, times in rows.items():
        print(f"| {kind} | {times} |")
    print("\n| crash point | struck |\n| --- | ---: |")
    for point in POINTS:
        print(f"| {point} | {struck[point]} |")
    failed = bool(toll.violations)
    if given.seconds >= COMPLETE_SECONDS:
        if os.geteuid() == 0 and not _obeys_modes():
            rows.pop("read-only folder")
            print("\nread-only folder: not tried, root may write there; install setpriv")
        never = [kind for kind, times in rows.items() if not times] + missing
        for kind in never:
            print(f"never happened: {kind}")
        failed = failed or bool(never)
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--processes", type=int, default=24, help="alive at the same time")
    parser.add_argument("--tasks", type=int, default=40)
    parser.add_argument("--seed", type=int, default=None, help="of the parent's dice")
    parser.add_argument("--place", type=Path, help="a folder on the disk to use")
    given = parser.parse_args()
    without_privileges()
    seed = given.seed if given.seed is not None else random.randrange(1 << 30)
    with tempfile.TemporaryDirectory(dir=given.place) as made:
        torture = Torture(Path(made) / "work", given.processes, given.tasks, seed)
        try:
            torture.run(given.seconds)
        finally:
            torture.end_all()
        return report(torture, given, seed)


if __name__ == "__main__":
    sys.exit(main())
