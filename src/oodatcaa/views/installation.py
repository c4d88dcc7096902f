"""The installation guide: exact commands for this platform and the others, and what was seen."""

from __future__ import annotations

from oodatcaa.domain.base import Utc
from oodatcaa.domain.plan import Trouble
from oodatcaa.domain.training import Machine
from oodatcaa.views.framework import CommandRun, command_runs, machine_facts
from oodatcaa.views.markdown import (
    code,
    facts,
    fence,
    page,
    prose,
    prose_bullets,
    section,
    table,
)
from oodatcaa.views.units import moment

_VERIFY = "oodatcaa doctor"
_IMPORT = "python -c 'import mlx.core as mx; print(mx.default_device())'"

TROUBLES: tuple[Trouble, ...] = (
    Trouble(
        symptom="pip finds no matching distribution for mlx on a Mac",
        cause="Python runs under Rosetta, or macOS is older than 14.0",
        remedy="`python -c 'import platform; print(platform.processor())'` must print `arm`; "
        "install a native Python and make the environment again",
    ),
    Trouble(
        symptom="importing mlx.core fails on Linux after pip install mlx",
        cause="on Linux the plain package has no compute backend",
        remedy="install `mlx[cpu]`, or `mlx[cuda13]` for an NVIDIA card",
    ),
    Trouble(
        symptom="training on the Linux CPU is many times slower than expected",
        cause="MLX's CPU wheel links the reference BLAS, which uses one thread",
        remedy="install `mkl` (x86-64) or a system OpenBLAS; `oodatcaa doctor` says which BLAS is "
        "active and what would make it faster",
    ),
    Trouble(
        symptom="a model name cannot be loaded without a network",
        cause="a hub name is downloaded when it is first used",
        remedy="use a local mlx-lm folder or `model: demo`; "
        "`oodatcaa models fetch demo` fetches the demo model once",
    ),
    Trouble(
        symptom="the memory gate refuses the run",
        cause="the estimate for this specification is over the objective's limit",
        remedy="`oodatcaa estimate` shows the parts; a smaller batch with accumulation, gradient "
        "checkpointing or fewer layers lower it",
    ),
    Trouble(
        symptom="the CUDA build does not start",
        cause="the driver is older than 580, the card older than SM 7.5, or glibc older than 2.35",
        remedy="`nvidia-smi` shows the driver; update it, or use `mlx[cpu]`",
    ),
)
"""Known obstacles of the platforms that MLX supports; callers append what happened to them."""


def installation_guide(
    *,
    machine: Machine | None = None,
    versions: dict[str, str] | None = None,
    runs: tuple[CommandRun, ...] = (),
    troubles: tuple[Trouble, ...] = TROUBLES,
    notes: tuple[str, ...] = (),
    at: Utc | None = None,
) -> str:
    """The guide as Markdown; `runs` are the commands that were checked on `machine`."""
    return page(
        "Installation guide",
        facts([("Checked", moment(at) if at else None)]),
        section("Requirements", _requirements()),
        section("From a clone", fence("make install", "bash"), _CLONE),
        section("From the package index", fence(_venv("'oodatcaa[demo]'"), "bash")),
        section("Choose the build of MLX", _builds()),
        section("Check it", fence(f"{_IMPORT}\n{_VERIFY}", "bash"), _CHECK),
        section(
            "What was checked on this machine",
            machine_facts(machine),
            _versions(versions or {}),
            command_runs(runs),
            prose_bullets(notes),
        ),
        section("Troubleshooting", *(_trouble(item) for item in troubles)),
    )


_CLONE = (
    "This makes `.venv` with the project, what the demo adds and the development tools. It uses "
    "`uv` where it is installed, and does nothing when `pyproject.toml` has not changed."
)
_CHECK = (
    "The first line names the device (`gpu` on Metal and CUDA, `cpu` otherwise); `oodatcaa doctor` "
    "says what is active, what is missing and what would make training faster."
)


def _venv(package: str) -> str:
    return "\n".join(
        ("python3 -m venv .venv", ". .venv/bin/activate", f"python -m pip install {package}")
    )


def _requirements() -> str:
    return table(
        ("Platform", "Needs"),
        [
            ("every platform", "Python 3.11 or newer, git"),
            ("macOS (Metal)", "Apple silicon, macOS 14.0 or newer, a native Python"),
            ("Linux (CPU)", "glibc 2.35 or newer"),
            ("Linux (CUDA 13)", "glibc 2.35 or newer, NVIDIA SM 7.5 or newer, driver 580 or newer"),
        ],
    )


def _builds() -> str:
    return "\n\n".join(
        (
            table(
                ("Machine", "Command", "Comes with the project"),
                [
                    ("Apple silicon", code("python -m pip install mlx"), "yes"),
                    ("Linux, CPU", code("python -m pip install 'mlx[cpu]'"), "yes"),
                    ("Linux, CPU, x86-64: a fast BLAS", code("python -m pip install mkl"),
                     "with the extra `demo`"),
                    ("Linux, CPU, other: a fast BLAS", code("sudo apt-get install libopenblas0"),
                     "no"),
                    ("Linux, NVIDIA", code("python -m pip install 'mlx[cuda13]'"), "no"),
                ],
            ),
            "The BLAS is loaded by the training process before MLX, on the CPU device only. "
            "Platform requirements are those of "
            "[MLX's own guide](https://ml-explore.github.io/mlx/build/html/install.html).",
        )
    )  # fmt: skip


def _versions(versions: dict[str, str]) -> str:
    return table(
        ("Package", "Version"),
        [(code(name), code(version) or "not installed") for name, version in versions.items()],
    )


def _trouble(item: Trouble) -> str:
    return section(
        item.symptom[:1].upper() + item.symptom[1:],
        facts([("Cause", prose(item.cause)), ("Remedy", prose(item.remedy))]),
        level=3,
    )
