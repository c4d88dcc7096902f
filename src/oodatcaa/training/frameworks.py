"""What the parent of a training child has to know about its framework, without importing it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from oodatcaa.domain.training import BackendProbe, Machine
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.machine import guess_accelerator
from oodatcaa.training import probes
from oodatcaa.training.mlx.blas import accelerator, describe_machine, find_blas

TORCH_BLAS = "torch's own"
CARD = Path("/dev/nvidiactl")


@dataclass(frozen=True)
class Framework:
    """`name` is the backend's, and the package below oodatcaa.training that holds its children."""

    name: str
    modules: tuple[str, ...]
    """What its children import."""
    versions: tuple[str, ...]
    """Distributions whose version decides how much memory a step needs."""
    install: str
    device: Callable[[], str]
    """What the formulas of an estimate know it as."""
    machine: Callable[[bool], Machine]
    """As a worker would describe it; the argument is `fast_cpu`."""
    probe: Callable[[], BackendProbe]
    needs_cuda: bool = False

    @property
    def folder(self) -> Path:
        return Path(__file__).parent / self.name

    def must_be_installed(self) -> None:
        """Raises OodatcaaError `backend.unavailable`; imports nothing."""
        missing = [name for name in self.modules if importlib.util.find_spec(name) is None]
        wants = [f"not installed: {', '.join(missing)}"] if missing else []
        if self.needs_cuda and not CARD.exists():
            wants.append("it needs an NVIDIA card")
        if wants:
            raise OodatcaaError(
                "backend.unavailable",
                f"backend {self.name} can not be used here: {'; '.join(wants)}",
                hint=self.install,
            )


def _mlx_machine(fast_cpu: bool) -> Machine:
    return describe_machine(find_blas() if fast_cpu and accelerator() == "cpu" else None)


def torch_device() -> str:
    """torch-metal, torch-cuda or torch-cpu: what torch will most likely compute on."""
    if sys.platform == "darwin" and platform.machine() == "arm64":
        return "torch-metal"
    try:
        build = importlib.metadata.version("torch").partition("+")[2]
    except importlib.metadata.PackageNotFoundError:
        build = "cpu"
    card = CARD.exists() and build != "cpu"
    return "torch-cuda" if card else "torch-cpu"


def _torch_machine(_: bool) -> Machine:
    kind = torch_device().removeprefix("torch-")
    return describe_machine(None).evolve(accelerator=kind, blas=TORCH_BLAS)


MLX = Framework(
    name="mlx",
    modules=("mlx", "mlx_lm"),
    versions=("mlx", "mlx-lm", "mkl", "numpy"),
    install="pip install mlx-lm",
    device=guess_accelerator,
    machine=_mlx_machine,
    probe=probes.probe_mlx,
)
HF = Framework(
    name="hf",
    modules=("torch", "transformers", "peft", "safetensors"),
    versions=("torch", "transformers", "peft"),
    install="pip install 'oodatcaa[hf]'",
    device=torch_device,
    machine=_torch_machine,
    probe=lambda: probes.probe_framework("hf"),
)
AXOLOTL = Framework(
    name="axolotl",
    modules=("axolotl", "torch", "transformers", "peft"),
    versions=("axolotl", "torch", "transformers", "peft"),
    install="on Linux with an NVIDIA card: pip install axolotl; otherwise use backend mlx or hf",
    # Half precision, or 4 bits: what the formulas say of a CUDA card comes nearest.
    device=lambda: "cuda",
    machine=lambda _: describe_machine(None).evolve(accelerator="cuda"),
    probe=lambda: probes.probe_framework("axolotl"),
    needs_cuda=True,
)
