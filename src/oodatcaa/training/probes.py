"""Facts about the training frameworks of this machine, found without importing them here."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

from oodatcaa.domain.training import BackendProbe
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.process import run_command

PROBE_SECONDS = 60.0

FIND = """
import importlib.metadata, importlib.util, json, sys
found = {}
for name in sys.argv[1:]:
    spec = importlib.util.find_spec(name)
    version = None
    if spec is not None:
        for dist in (name, name.replace("_", "-")):
            try:
                version = importlib.metadata.version(dist)
                break
            except importlib.metadata.PackageNotFoundError:
                pass
    found[name] = {"there": spec is not None, "version": version}
print(json.dumps(found))
"""
MLX = """
import json
import mlx.core as mx
mx.eval(mx.ones(4) @ mx.ones(4))
device = mx.default_device()
kind = "cpu" if device == mx.cpu else "metal" if mx.metal.is_available() else "cuda"
print(json.dumps({"device": kind}))
"""
TORCH = """
import json, torch
cuda = torch.cuda.is_available()
mps = torch.backends.mps.is_available()
print(json.dumps({"device": "cuda" if cuda else "metal" if mps else "cpu"}))
"""


@dataclass(frozen=True)
class _Module:
    there: bool
    version: str | None


def _python(code: str, *arguments: str) -> tuple[dict[str, object] | None, str]:
    """The JSON object that `code` prints last, or None and the last line it said."""
    result = run_command([sys.executable, "-P", "-c", code, *arguments], timeout=PROBE_SECONDS)
    lines = [line for line in result.tail.splitlines() if line.strip()]
    if result.timed_out:
        return None, f"no answer within {PROBE_SECONDS:.0f} s"
    if not result.ok or not lines:
        return None, lines[-1] if lines else f"exit code {result.exit_code}"
    try:
        value = json.loads(lines[-1])
    except ValueError:
        return None, lines[-1]
    return (value, "") if isinstance(value, dict) else (None, lines[-1])


def _find(*names: str) -> dict[str, _Module]:
    found, problem = _python(FIND, *names)
    if found is None:
        raise OodatcaaError("probe.failed", f"looking for {', '.join(names)} failed: {problem}")
    return {
        name: _Module(bool(entry["there"]), entry["version"])
        for name, entry in found.items()
        if isinstance(entry, dict)
    }


def probe_mlx() -> BackendProbe:
    """mlx-lm: found, and does mlx really compute here? Asked in a child process."""
    modules = _find("mlx", "mlx_lm")
    lm = modules["mlx_lm"]
    missing = [name for name, module in modules.items() if not module.there]
    if missing:
        return BackendProbe(
            name="mlx",
            title="MLX-LM",
            importable=False,
            version=lm.version,
            problem=f"not installed: {', '.join(missing)}; pip install 'mlx[cpu]' mlx-lm on Linux",
        )
    facts, problem = _python(MLX)
    notes = [f"mlx {modules['mlx'].version}"]
    return BackendProbe(
        name="mlx",
        title="MLX-LM",
        importable=facts is not None,
        version=lm.version,
        accelerator=str(facts["device"]) if facts is not None else None,
        notes=tuple(notes),
        problem=f"mlx can not compute here: {problem}" if facts is None else None,
    )


@dataclass(frozen=True)
class _Framework:
    name: str
    title: str
    needs: tuple[str, ...]
    helps: tuple[str, ...]
    install: str
    main: str


FRAMEWORKS = {
    "hf": _Framework(
        name="hf",
        title="Hugging Face (transformers + peft)",
        needs=("torch", "transformers", "peft", "accelerate"),
        helps=("trl", "bitsandbytes"),
        install="pip install 'oodatcaa[hf]'",
        main="peft",
    ),
    "axolotl": _Framework(
        name="axolotl",
        title="axolotl",
        needs=("axolotl", "torch", "transformers", "peft", "accelerate"),
        helps=("bitsandbytes", "flash_attn"),
        install="pip install axolotl (needs Linux and an NVIDIA card)",
        main="axolotl",
    ),
}


def probe_framework(name: str) -> BackendProbe:
    """What of `hf` or `axolotl` is installed here, what is missing, which accelerator it sees."""
    framework = FRAMEWORKS[name]
    modules = _find(*framework.needs, *framework.helps)
    missing = [module for module in framework.needs if not modules[module].there]
    notes = [f"{n} {m.version or 'of unknown version'}" for n, m in modules.items() if m.there]
    notes += [f"{n} is not installed (4-bit)" for n in ("bitsandbytes",) if not modules[n].there]
    facts: dict[str, object] | None = None
    problem = f"not installed: {', '.join(missing)}" if missing else None
    if modules["torch"].there:
        facts, trouble = _python(TORCH)
        problem = problem or (f"torch can not be imported: {trouble}" if facts is None else None)
    if name == "axolotl" and facts is not None and facts["device"] != "cuda":
        problem = problem or "it needs an NVIDIA card: axolotl lists QLoRA as unsupported elsewhere"
    return BackendProbe(
        name=framework.name,
        title=framework.title,
        importable=not missing and problem is None,
        version=modules[framework.main].version,
        accelerator=str(facts["device"]) if facts else None,
        notes=tuple(notes),
        problem=problem,
    )
