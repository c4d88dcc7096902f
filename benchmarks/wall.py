"""`make bench-wall`: how far past the limit a run gets, beside how fast memory can be taken.

Rates, then how far apart the samples of watcher and guard really are, then what every adversary of
the tests reached at a limit of 1 GB. How far it got is the larger of what the watch recorded and
what the kernel kept as the largest resident size of one process. The tables go into
docs/benchmarks.md with `--write`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from page import measured_with, write_section

from memory_eaters import (
    ALL_CORES,
    CALLBACK,
    JUMP,
    LEAP,
    MB,
    WALLED,
    grandchild,
    growing,
)
from oodatcaa.kit.cgroup import make_group
from oodatcaa.kit.memory import MAX_INTERVAL, MemoryWatch
from oodatcaa.kit.process import Child, Limits
from oodatcaa.training.children import ChildSettings, run_child
from oodatcaa.training.endings import memory_stop
from oodatcaa.training.wall import INTERVAL, Guard

HERE = Path(__file__).resolve()
LIMIT = 1_000 * MB
CORES = os.cpu_count() or 1
LOOKING = 2.0
"""Seconds for which samples are counted."""
STEP = 16 * MB
ALONE = ChildSettings(control_group=False)
SPIN = "while True: pass"
PACE = f"import sys; sys.path.insert(0, {str(HERE.parents[1] / 'tests')!r}); import memory_eaters"


@dataclass(frozen=True)
class Adversary:
    """A program, on how many threads it takes memory, and whether the guard in it is to stop it:
    what watches from outside has a higher limit then."""

    code: str
    threads: int = 1
    guarded: bool = False


ADVERSARIES = {
    "grows by 16 MB every 20 ms": Adversary(growing(STEP)),
    "the same in a grandchild": Adversary(grandchild(STEP)),
    "3 GB in one step, one thread": Adversary(LEAP),
    "3 GB as fast as all cores can": Adversary(ALL_CORES, CORES),
    "a leak beside MLX, under the guard": Adversary(WALLED.format(body=CALLBACK), guarded=True),
    "one array of 16 GB in MLX": Adversary(WALLED.format(body=JUMP)),
}


@dataclass(frozen=True)
class Reached:
    """Who stopped it, how many bytes it got, and the longest time between two samples."""

    stop: str
    bytes: int
    gap: float


def attack(name: str) -> Reached:
    """In this process, which must not have had other children: the kernel's mark is of them all."""
    asked = ADVERSARIES[name]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        ended = run_child(
            [sys.executable, "-c", asked.code, made, str(LIMIT)],
            folder=folder,
            log=folder / "log",
            limit=2 * LIMIT if asked.guarded else LIMIT,
            settings=ALONE,
        )
        found = memory_stop(ended, folder / "log", LIMIT)
        stop = found.stop.value if found is not None and found.stop is not None else "nobody"
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    largest *= 1024 if sys.platform.startswith("linux") else 1
    if ended.stop_note is not None:
        return Reached(
            stop, max(ended.stop_note.process_bytes, largest), ended.stop_note.longest_gap
        )
    return Reached(stop, max(ended.peak_bytes, largest), ended.longest_gap)


def in_a_group() -> str:
    """What the kernel let a tree in a control group of its own have, by its own count."""
    group = make_group(LIMIT)
    if group is None:
        return "No control group can be made on this machine."
    with group:
        inside = Limits(group=group.entrance)
        with Child.start([sys.executable, "-c", LEAP], limits=inside) as child:
            child.wait()
        names = ("memory.peak", "memory.max_usage_in_bytes")
        found = [group.folder / name for name in names if (group.folder / name).exists()]
        most, kills = int(found[0].read_text()), group.kills
    return (
        f"In a control group of its own, with nobody else looking, 3 GB in one step got {most:,} "
        f"of {LIMIT:,} bytes by the kernel's own count; it killed {kills} process."
    )


def attack_alone(name: str) -> Reached:
    done = subprocess.run(
        [sys.executable, str(HERE), "--attack", name], check=True, capture_output=True, text=True
    )
    return Reached(**json.loads(done.stdout))


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Every core has something else to do."""
    others = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(CORES)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def rate(processes: int, *, large_pages: bool = False) -> float:
    """Bytes per second that so many processes bring into memory together."""
    code = f"{PACE}; print(memory_eaters.pace(40, large_pages={large_pages}))"
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    return sum(float(process.communicate()[0]) for process in started)


class Nothing:
    """Counters of a framework that holds nothing."""

    title = "nothing"

    def held(self) -> int:
        return 0

    active = peak = held

    def reset(self) -> None:
        pass


def gaps() -> list[str]:
    """Mean and longest milliseconds between two samples of the watcher, and of the guard."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Child.start(["sleep", "60"]) as child,
        MemoryWatch(child.pid, None) as watch,
        Guard(Path(folder), 1 << 60, Nothing()) as guard,
    ):
        time.sleep(LOOKING)
    return [
        f"{1000 * LOOKING / one.samples:.1f} (longest {1000 * one.longest_gap:.1f})"
        for one in (watch, guard)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attack", choices=ADVERSARIES, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="put the tables into the page")
    asked = parser.parse_args()
    if asked.attack:
        print(json.dumps(asdict(attack(asked.attack))))
        return
    command = measured_with("make bench-wall", ["mlx"])
    text = f"## How far past the limit\n\n{command}\n\n{measure()}"
    print(text)
    if asked.write:
        write_section("bench-wall", text)


def measure() -> str:
    one, all_cores = rate(1), rate(CORES)
    large = rate(1, large_pages=True), rate(CORES, large_pages=True)
    idle_gaps = gaps()
    idle = {name: attack_alone(name) for name in ADVERSARIES}
    with busy():
        busy_gaps = gaps()
        full = {name: attack_alone(name) for name in ADVERSARIES}
    lines = [
        "Memory can be taken at (the best of 40 blocks of 34 MB):",
        "",
        "| | one thread, GB/s | all cores, GB/s |",
        "| --- | ---: | ---: |",
        f"| pages of {resource.getpagesize() // 1024} KB | {_gb(one)} | {_gb(all_cores)} |",
        f"| large pages | {_gb(large[0])} | {_gb(large[1])} |",
        "",
        f"Milliseconds between two samples in {LOOKING:.0f} s. The watcher is asked for 25, and "
        f"never waits for more than {1000 * MAX_INTERVAL:.0f}; the guard is for "
        f"{1000 * INTERVAL:.0f}.",
        "",
        "| | watcher | guard |",
        "| --- | ---: | ---: |",
        f"| idle | {' | '.join(idle_gaps)} |",
        f"| all cores busy | {' | '.join(busy_gaps)} |",
        "",
        f"What adversaries reached at a limit of {LIMIT / 1e9:.0f} GB without a control group, "
        "beside the promise: the larger of 2 % and what they could take at the rate above in the "
        "longest time between two samples that they had.",
        "",
        "| adversary | | stopped by | longest gap, ms | past the limit, MB | % | promised, MB |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for name, asked in ADVERSARIES.items():
        for when, found in (("idle", idle[name]), ("busy", full[name])):
            past = max(0, found.bytes - LIMIT)
            allowed = max(0.02 * LIMIT, asked.threads * one * found.gap)
            lines.append(
                f"| {name} | {when} | {found.stop} | {1000 * found.gap:.1f} | {past / MB:.0f} "
                f"| {100 * past / LIMIT:.1f} | {allowed / MB:.0f} |"
            )
    lines += ["", in_a_group(), "", "macOS was not measured."]
    return "\n".join(lines)


def _gb(bytes_: float) -> str:
    return f"{bytes_ / 1e9:.1f}"


if __name__ == "__main__":
    main()
