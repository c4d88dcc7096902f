"""A real BLAS for MLX's CPU device, loaded before mlx is imported.

MLX's Linux CPU wheel links the reference BLAS (one thread, 2-4 GFLOP/s in float32). A library that
is loaded earlier with RTLD_GLOBAL comes first in the dynamic linker's search, so its `cblas_sgemm`
is the one MLX gets. This module never imports mlx: order is everything here, and `doctor` asks it.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from oodatcaa.domain.base import Record
from oodatcaa.domain.training import Machine
from oodatcaa.training.identity import NUMPY_KERNELS, NUMPY_THREADS, cores
from oodatcaa.training.protocol import fast_cpu_wanted


class Blas(Record):
    """A BLAS that can be preloaded. `path` may be a bare soname that the linker finds itself."""

    name: str
    path: str


class CpuSpeed(Record):
    """What a training worker on this machine would use, and what would make it faster."""

    device: str
    blas: Blas | None
    advice: tuple[str, ...] = ()

    @property
    def fast(self) -> bool:
        """No CPU measure is missing (trivially so where training runs on a GPU)."""
        return not self.advice


_preloaded: Blas | None = None
_numpy_kernels: str | None = None
_threads: int | None = None


def accelerator() -> str:
    """`metal`, `cuda` or `cpu`: the device the installed MLX build will use, without loading it."""
    if sys.platform == "darwin":
        return "metal" if platform.machine() == "arm64" else "cpu"
    installed = {d.metadata["Name"] or "" for d in importlib.metadata.distributions()}
    has_card = Path("/dev/nvidiactl").exists()
    if has_card and any(name.lower().startswith("mlx-cuda") for name in installed):
        return "cuda"
    return "cpu"


def find_blas(prefix: Path | None = None) -> Blas | None:
    """MKL of this environment, else a system OpenBLAS, else None. Never raises."""
    lib = (prefix or Path(sys.prefix)) / "lib"
    for candidate in sorted(lib.glob("libmkl_rt.so*"), reverse=True):
        return Blas(name="MKL", path=str(candidate))
    if soname := ctypes.util.find_library("openblas"):
        return Blas(name="OpenBLAS", path=soname)
    return None


def preload() -> Blas | None:
    """Load the best BLAS for the whole process; what is used, or None when MLX's own is kept.

    Only on Linux and only for the CPU device. Must run before mlx is imported anywhere in the
    process: RuntimeError otherwise, because the call would silently have no effect.
    """
    global _preloaded
    if not fast_cpu_wanted():
        return None
    if _preloaded is not None or not sys.platform.startswith("linux") or accelerator() != "cpu":
        return _preloaded
    if "mlx.core" in sys.modules:
        raise RuntimeError("a BLAS can only be preloaded before mlx is imported")
    blas = find_blas()
    if blas is None:
        return None
    try:
        ctypes.CDLL(blas.path, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        # Slower is better than not at all; the log says why it is slow.
        print(f"{blas.name} at {blas.path} can not be loaded, MLX's own BLAS is used: {error}")
        return None
    _preloaded = blas
    if blas.name == "MKL":
        _prepare_numpy()
    return blas


def _prepare_numpy() -> None:
    """On an AMD processor let numpy's BLAS be ready to multiply instead (products.py says why).

    It reads its settings when numpy is imported, so that happens here, or must not have happened.
    Zen 4 (family 25 with AVX-512) has no execution units of 512 bits: OpenBLAS's AVX2 kernels were
    5 to 8 % faster there than the AVX-512 ones that it chooses itself.
    """
    global _numpy_kernels
    described = described_cpu()
    if "numpy" in sys.modules or described.get("vendor_id") != "AuthenticAMD":
        return
    zen_4 = described.get("cpu family") == "25" and "avx512f" in described.get("flags", "")
    wanted = {NUMPY_THREADS: "1", **({NUMPY_KERNELS: "Haswell"} if zen_4 else {})}
    fresh = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(fresh)
    import numpy

    if os.environ[NUMPY_THREADS] == "1":
        build: Any = numpy.show_config(mode="dicts")
        name = str(build["Build Dependencies"]["blas"]["name"])
        chosen = os.environ.get(NUMPY_KERNELS, "its own choice")
        _numpy_kernels = chosen if "openblas" in name else None
    for name in fresh:  # what a person did not set is nobody else's
        del os.environ[name]


def numpy_kernels() -> str | None:
    """Of numpy's OpenBLAS, by the name that it was given, where `preload` found that it is to
    multiply on one thread instead of MKL; else None."""
    return _numpy_kernels


def preloaded() -> Blas | None:
    """The BLAS that this process loaded by `preload`, or None."""
    return _preloaded


_SETTERS = {"MKL": "MKL_Set_Num_Threads", "OpenBLAS": "openblas_set_num_threads"}


def use_threads(count: int) -> None:
    """Let a product take so many threads, by the preloaded BLAS. Without one the number is only
    remembered."""
    global _threads
    _threads = count
    if _preloaded is not None:
        setter = getattr(ctypes.CDLL(_preloaded.path), _SETTERS[_preloaded.name])
        setter(ctypes.c_int(count))


def threads() -> int:
    """That a product takes now."""
    return _threads or cores()


def numpy_is_faster() -> bool:
    """Whether numpy is preferred now: where its library is, and a product takes one thread."""
    return threads() == 1 and numpy_kernels() is not None


def describe_cpu() -> CpuSpeed:
    """What a worker would use here. Does not load anything into the calling process."""
    device = accelerator()
    if device != "cpu":
        return CpuSpeed(device=device, blas=None)
    blas = find_blas()
    advice = []
    if not sys.platform.startswith("linux"):
        advice.append("this machine has no Metal GPU that MLX supports; training will be slow")
    elif blas is None or blas.name != "MKL":
        have = "the reference BLAS (2-4 GFLOP/s)" if blas is None else "OpenBLAS"
        better = (
            "install MKL: pip install 'oodatcaa[demo]' (or: pip install mkl)"
            if platform.machine() == "x86_64"
            else "install OpenBLAS, for example: apt install libopenblas0"
        )
        if blas is None or platform.machine() == "x86_64":
            advice.append(f"training multiplies with {have}; {better}")
    return CpuSpeed(device=device, blas=blas, advice=tuple(advice))


def describe_machine(blas: Blas | None = None) -> Machine:
    """This machine for run.json; `blas` is what this process preloaded."""
    return Machine(
        host=socket.gethostname(),
        system=f"{platform.system()} {platform.release()}",
        processor=_processor(),
        cpu_count=psutil.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        accelerator=accelerator(),
        blas="" if blas is None else f"{blas.name} ({Path(blas.path).name})",
    )


def _processor() -> str:
    if sys.platform == "darwin":
        asked = subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"],
            capture_output=True,
            text=True,
            check=False,
        )
        return asked.stdout.strip() or platform.machine()
    return described_cpu().get("model name") or platform.processor() or platform.machine()


def described_cpu() -> dict[str, str]:
    """The first processor in Linux's own words; elsewhere nothing."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return {}
    first = info.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    lines = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}
