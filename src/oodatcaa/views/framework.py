"""Framework evaluation, dependency pins and quality gates, written from what was probed and run."""

from __future__ import annotations

from oodatcaa.domain.base import NonEmpty, Record, Utc
from oodatcaa.domain.evidence import GateSpec
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.training import BackendProbe, Machine
from oodatcaa.views.agent_plan import alternatives, decision, fallback
from oodatcaa.views.markdown import (
    bold,
    code,
    facts,
    fence,
    page,
    prose,
    prose_bullets,
    section,
    table,
)
from oodatcaa.views.plan_parts import gate_section, gate_table
from oodatcaa.views.units import count, duration, memory, moment


class CommandRun(Record):
    """A command that really ran: its exit code, how long it took and what it printed last.

    `gate_id` ties it to the gate it decides; an `exit_code` of None is a command that crashed
    or ran out of time.
    """

    command: NonEmpty
    exit_code: int | None
    seconds: float
    output: str = ""
    gate_id: str = ""
    at: Utc | None = None

    @property
    def outcome(self) -> str:
        if self.exit_code is None:
            return "crashed"
        return "passed" if self.exit_code == 0 else "failed"


class Pin(Record):
    """One package: what pyproject.toml asks for and what is installed (None = nothing)."""

    name: NonEmpty
    required: str = ""
    installed: str | None = None
    licence: str = ""
    purpose: str = ""


def machine_facts(machine: Machine | None) -> str:
    """The machine that numbers were measured on; its host name is left out on purpose."""
    if machine is None:
        return ""
    return facts(
        [
            ("System", prose(machine.system)),
            ("Processor", f"{prose(machine.processor)}, {count(machine.cpu_count, 'core')}"),
            ("Memory", memory(machine.memory_bytes)),
            ("Accelerator", prose(machine.accelerator)),
            ("BLAS for the CPU device", prose(machine.blas) or None),
        ]
    )


def framework_evaluation(
    probes: tuple[BackendProbe, ...],
    *,
    plan: Plan | None = None,
    machine: Machine | None = None,
    at: Utc | None = None,
) -> str:
    """What each training framework can do on this machine, and which one was chosen and why."""
    return page(
        "Framework evaluation",
        "Every framework was probed on the machine below; nothing here is an opinion about a "
        "framework in general.",
        facts([("Probed", moment(at) if at else None)]),
        section("Machine", machine_facts(machine)),
        _probes(probes),
        *(_probe_notes(probe) for probe in probes),
        alternatives(plan) if plan else "",
        decision(plan) if plan else "",
        fallback(plan) if plan else "",
    )


def _probes(probes: tuple[BackendProbe, ...]) -> str:
    return section(
        "Frameworks on this machine",
        table(
            ("Framework", "Importable", "Version", "Accelerator", "Usable here"),
            [
                (prose(probe.title), "yes" if probe.importable else "no",
                 code(probe.version or "") or "none", prose(probe.accelerator or "none"),
                 "yes" if probe.usable else "no")
                for probe in probes
            ],
        ),
    )  # fmt: skip


def _probe_notes(probe: BackendProbe) -> str:
    return section(
        probe.title,
        f"{bold('Problem:')} {prose(probe.problem)}" if probe.problem else "",
        prose_bullets(probe.notes),
        level=3,
    )


def dependency_pins(pins: tuple[Pin, ...], *, at: Utc | None = None, python: str = "") -> str:
    """The versions that were used, and how to get exactly these again."""
    installed = [pin for pin in pins if pin.installed]
    missing = [pin for pin in pins if not pin.installed]
    return page(
        "Dependency pins",
        facts([("Read", moment(at) if at else None), ("Python", prose(python))]),
        section(
            "Packages",
            "Installed is what the work was done with; required is what `pyproject.toml` asks for."
            if any(pin.required for pin in pins)
            else "The versions that the work was done with.",
            _pin_table(pins),
        ),
        section(
            "Exactly these versions",
            "Save this as `constraints.txt` and install with it:" if installed else "",
            fence("\n".join(f"{pin.name}=={pin.installed}" for pin in installed), "text"),
            fence("python -m pip install -c constraints.txt -e '.[demo]'", "bash")
            if installed
            else "",
        ),
        section(
            "Not installed here",
            prose_bullets(
                f"{pin.name}" + (f": {pin.purpose}" if pin.purpose else "") for pin in missing
            ),
        ),
    )


def _pin_table(pins: tuple[Pin, ...]) -> str:
    """Only the columns that at least one package has something for."""
    columns = [
        ("Package", [code(pin.name) for pin in pins]),
        ("Installed", [code(pin.installed or "") or "not installed" for pin in pins]),
        ("Required", [code(pin.required) for pin in pins]),
        ("Licence", [prose(pin.licence) for pin in pins]),
        ("Needed for", [prose(pin.purpose) for pin in pins]),
    ]
    shown = [(head, cells) for head, cells in columns if any(cells)]
    return table([head for head, _ in shown], zip(*(cells for _, cells in shown), strict=True))


def quality_gates(
    gates: tuple[GateSpec, ...],
    *,
    runs: tuple[CommandRun, ...] = (),
    memory_limit_bytes: int | None = None,
) -> str:
    """The gates with their exact commands, and what the last run of each gave."""
    return page(
        "Quality gates",
        "A change is accepted only when the framework has run these itself, in a fresh worktree "
        "at the submitted commit, and stored the result.",
        section("Gates", gate_table(gates), *(gate_section(g, memory_limit_bytes) for g in gates)),
        section("Last run", command_runs(runs)),
    )


def command_runs(runs: tuple[CommandRun, ...]) -> str:
    """Commands with their exit codes; the output of those that did not pass follows."""
    shown = table(
        ("Gate", "Command", "Result", "Exit", "Took"),
        [
            (run.gate_id or "none", code(run.command, 80), run.outcome,
             "none" if run.exit_code is None else str(run.exit_code), duration(run.seconds))
            for run in runs
        ],
        "lllrr",
    )  # fmt: skip
    failed = [run for run in runs if run.outcome != "passed" and run.output.strip()]
    outputs = [f"Last lines of {code(run.command, 80)}:\n\n{fence(run.output)}" for run in failed]
    return "\n\n".join(block for block in (shown, *outputs) if block)
