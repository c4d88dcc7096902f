"""What is known about the checks that Python projects use: data, one record a tool.

A preset says how the tool is started, which of its exit codes mean findings (every other one but 0
is a crash), how the findings are counted, and what it prints when it could not do its work.
"""

from __future__ import annotations

import shlex
from typing import Literal

from pydantic import Field, PositiveInt

from oodatcaa.domain.base import NonEmpty, Record

UNREACHABLE = (
    r"ConnectionError|NewConnectionError|Max retries exceeded|ConnectTimeout|ReadTimeout"
    r"|Temporary failure in name resolution|Name or service not known|getaddrinfo failed"
    r"|nodename nor servname|Network is unreachable|Connection refused|Connection reset"
    r"|ProxyError|Could not connect|Tunnel connection failed|No route to host"
)
"""What network libraries say; a tool that needed the net and did not get it has checked nothing."""


class Counting(Record):
    """One way to count findings in an output; the first way of a preset that fits is taken.

    `json_list`: the length of a JSON array; `json_sum`: the lengths of the arrays at `path` below
    each item of the array at `items`; `json_lines`: lines that are a JSON object with `path` being
    `items`; `lines`: lines that match; `numbers`: the sum of the numbers that match in the last
    line that has any.
    """

    how: Literal["json_list", "json_sum", "json_lines", "lines", "numbers"]
    pattern: str = ""
    items: str = ""
    path: str = ""


class GatePreset(Record):
    name: NonEmpty
    title: NonEmpty
    command: NonEmpty
    distributions: tuple[NonEmpty, ...] = Field(description="whose versions the evidence names")
    findings_codes: tuple[int, ...] = Field(description="exit codes that mean findings")
    comparable_codes: tuple[int, ...] = Field(
        default=(), description="exit codes that a baseline may excuse, besides 0"
    )
    counting: tuple[Counting, ...] = ()
    better: Literal["lower", "higher"] = "lower"
    unit: str = "findings"
    nothing: str = Field(default="", description="printed when there was nothing to check")
    broken_code: str = Field(
        default="", description="printed when the checked code, not the tool, is what broke"
    )
    timeout_seconds: PositiveInt = 600


PRESETS: dict[str, GatePreset] = {
    preset.name: preset
    for preset in (
        GatePreset(
            name="black",
            title="formatting (black)",
            command="{python} -m black --check .",
            distributions=("black",),
            findings_codes=(1,),
            comparable_codes=(1,),
            counting=(
                Counting(how="numbers", pattern=r"(\d+) files? would be reformatted"),
                Counting(how="lines", pattern=r"^would reformat "),
            ),
            unit="files to format",
            nothing=r"^No Python files are present",
        ),
        GatePreset(
            name="ruff",
            title="lint (ruff)",
            command="{python} -m ruff check --no-fix --no-cache --output-format json .",
            distributions=("ruff",),
            findings_codes=(1,),
            comparable_codes=(1,),
            counting=(
                Counting(how="json_list"),
                Counting(how="numbers", pattern=r"^Found (\d+) errors?"),
            ),
            nothing=r"No Python files found under",
        ),
        GatePreset(
            name="ruff-format",
            title="formatting (ruff)",
            command="{python} -m ruff format --check --no-cache .",
            distributions=("ruff",),
            findings_codes=(1,),
            comparable_codes=(1,),
            counting=(
                Counting(how="numbers", pattern=r"^(\d+) files? would be reformatted"),
                Counting(how="lines", pattern=r"^Would reformat: "),
            ),
            unit="files to format",
            nothing=r"No Python files found under",
        ),
        GatePreset(
            name="mypy",
            title="types (mypy)",
            command="{python} -m mypy --no-pretty --error-summary .",
            distributions=("mypy",),
            findings_codes=(1,),
            comparable_codes=(1,),
            counting=(
                Counting(how="json_lines", path="severity", items="error"),
                Counting(how="numbers", pattern=r"^Found (\d+) errors? in "),
                Counting(how="lines", pattern=r"^[^:\n]+:\d+(?::\d+)?: error: "),
            ),
            nothing=r"^There are no \.py\[i\] files|^Nothing to do\?!",
            broken_code=r"\[syntax\]\s*$|errors prevented further checking",
            unit="type errors",
        ),
        GatePreset(
            name="pytest",
            title="tests (pytest)",
            command="{python} -m pytest -q -p no:cacheprovider",
            distributions=("pytest",),
            findings_codes=(1,),
            comparable_codes=(1,),
            counting=(Counting(how="numbers", pattern=r"\b(\d+) (?:failed|errors?)\b"),),
            nothing=r"^=*\s*no tests ran\b"
            r"|^=*\s*(?:\d+ (?:skipped|deselected|warnings?)(?:, )?)+ in ",
            broken_code=r"errors? during collection|^ERROR .*conftest|^ImportError while loading",
            unit="failed tests",
            timeout_seconds=1800,
        ),
        GatePreset(
            name="coverage",
            title="tests and coverage",
            command="{python} -m coverage run -m pytest -q -p no:cacheprovider && "
            "{python} -m coverage report",
            distributions=("coverage", "pytest"),
            findings_codes=(2,),
            comparable_codes=(2,),
            counting=(Counting(how="numbers", pattern=r"^TOTAL\s.*?(\d+(?:\.\d+)?)%"),),
            better="higher",
            unit="% covered",
            nothing=r"no tests ran|^No data to report|No data was collected",
            broken_code=r"\b\d+ (?:failed|errors?)\b",
            timeout_seconds=1800,
        ),
        GatePreset(
            name="build",
            title="package build",
            command="{python} -m build --outdir .oodatcaa-dist .",
            distributions=("build",),
            findings_codes=(),
            broken_code=r"^ERROR |Backend subprocess exited",
            timeout_seconds=1200,
        ),
        GatePreset(
            name="pip-audit",
            title="known vulnerabilities (pip-audit)",
            command="{python} -m pip_audit --progress-spinner off --format json",
            distributions=("pip-audit",),
            findings_codes=(1,),
            comparable_codes=(1,),
            counting=(
                Counting(how="json_sum", items="dependencies", path="vulns"),
                Counting(how="numbers", pattern=r"^Found (\d+) known vulnerabilit"),
            ),
            unit="vulnerabilities",
        ),
        GatePreset(
            name="pip-check",
            title="consistent dependencies (pip check)",
            command="{python} -m pip check",
            distributions=("pip",),
            findings_codes=(1,),
            comparable_codes=(1,),
            counting=(
                Counting(
                    how="lines",
                    pattern=r"^\S+ \S+ (?:requires|has requirement|is not supported)\b",
                ),
            ),
            unit="broken requirements",
        ),
    )
}

_MODULES = {"pip_audit": "pip-audit", "py.test": "pytest"}
_RUNNERS = {("uv", "run"), ("poetry", "run"), ("pdm", "run"), ("hatch", "run"), ("rye", "run")}
_SHELL = set("|&;<>`()\n")


def preset_for(command: str, named: str = "") -> GatePreset | None:
    """The named preset, or the one whose tool a plain command starts; None for anything else.

    `{python} -m mypy src`, `uv run ruff check` and `pytest -q` are recognised; what goes through
    pipes, lists or scripts is not, because its exit code may be another program's.
    """
    if named:
        return PRESETS.get(named)
    if set(command) & _SHELL:
        return None
    try:
        words = shlex.split(command)
    except ValueError:
        return None
    while words and "=" in words[0] and not words[0].startswith("-"):
        words = words[1:]
    if tuple(words[:2]) in _RUNNERS:
        words = words[2:]
    if words and words[0].rsplit("/", 1)[-1].strip("{}").startswith("python"):
        if words[1:2] != ["-m"]:
            return None
        words = words[2:]
    if not words:
        return None
    tool = words[0].rsplit("/", 1)[-1]
    tool = _MODULES.get(tool, tool)
    if tool == "ruff" and words[1:2] == ["format"]:
        tool = "ruff-format" if "--check" in words else ""
    if tool == "pip":
        tool = "pip-check" if words[1:2] == ["check"] else ""
    return None if tool == "coverage" else PRESETS.get(tool)
