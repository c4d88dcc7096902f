"""Programs that take memory in every way a run might, and how fast this machine hands it out.

All of them end by themselves a few GB further: a wall that fails must not take the machine down.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time

from oodatcaa.kit.memory import tree_memory

MB = 1_000_000
NOISE = 2
"""A rate is measured in another moment than the one that it bounds."""


def growing(step: int, most: int = 3_000 * MB) -> str:
    """Takes `step` bytes every 20 ms."""
    return f"""
import time
held = [b"x" * {step} for _ in range({most // step}) if not time.sleep(0.02)]
time.sleep(60)
"""


def grandchild(step: int) -> str:
    """The same in a session of its own, below a process that does nothing."""
    return f"""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import os; os.setsid()" + {growing(step)!r}])
time.sleep(60)
"""


LEAP = "held = b'x' * 3_000_000_000"
LEAP_BELOW = f"""
import subprocess, sys
sys.exit(subprocess.call([sys.executable, "-c", {LEAP!r}]) and 1)
"""
ALL_CORES = """
import ctypes, mmap, os, threading, time
def take():
    held = []
    for _ in range(3_000 // 8 // os.cpu_count()):
        held.append(mmap.mmap(-1, 8 << 20))
        start = ctypes.addressof(ctypes.c_char.from_buffer(held[-1]))
        ctypes.memset(start, 1, len(held[-1]))
    time.sleep(60)
for _ in range(os.cpu_count()):
    threading.Thread(target=take).start()
"""
"""A thread on every core, each as fast as it can: memset without Python's lock."""
WALLED = """
import sys, time
from pathlib import Path
import mlx.core as mx
from oodatcaa.training.mlx.guard import walled
with walled(Path(sys.argv[1]), int(sys.argv[2])):
    {body}
"""
"""What a worker does, in place of `body`; its arguments are its folder and its limit."""
CALLBACK = """held = []
    while len(held) < 1_500:
        held.append(b'x' * 2_000_000)
        time.sleep(0.005)"""
STEP = """x = mx.random.uniform(shape=(1000, 1000))
    for _ in range(400):
        x = mx.concatenate([x, mx.exp(x[:1000])])
    mx.eval(x)"""
JUMP = "mx.eval(mx.ones((40_000, 100_000)) + 1)"


def pace(blocks: int = 10, size: int = 32 << 20, *, large_pages: bool = False) -> float:
    """Bytes per second that one thread brings into memory: the fastest of some blocks, for on a
    busy machine others were interrupted."""
    best = 0.0
    for _ in range(blocks):
        with mmap.mmap(-1, size) as block:
            if large_pages and hasattr(mmap, "MADV_HUGEPAGE"):
                block.madvise(mmap.MADV_HUGEPAGE)
            first = ctypes.c_char.from_buffer(block)
            begun = time.perf_counter()
            ctypes.memset(ctypes.addressof(first), 1, size)
            best = max(best, size / (time.perf_counter() - begun))
            del first
    return best


def look_seconds() -> float:
    """What one look of the watcher takes at a tree that it does not know yet."""
    begun = time.perf_counter()
    tree_memory(os.getpid())
    return time.perf_counter() - begun


def most_past(limit: int, gap: float, rate: float, threads: int = 1) -> int:
    """How far past `limit` the promise lets a run of so many `threads` get: 2 %, or what they can
    take in the longest `gap` in seconds that there was between two samples of it."""
    between = NOISE * threads * max(rate, pace()) * (gap + look_seconds())
    return int(max(0.02 * limit, between))
