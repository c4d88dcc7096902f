"""What a pytest run has to leave: its own report, and the word of a plugin that watched it.

Both are written by the process in which the commit's code runs, so neither alone is taken: a
report can be written by a conftest.py that then leaves with 0, a hook can turn failures into
passes. See `witness/` for what is watched, docs/explanation/evidence.md for what remains possible.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
from dataclasses import dataclass
from pathlib import Path

from oodatcaa.domain.gate_presets import preset_for

PLUGIN_FOLDER = Path(__file__).with_name("witness")
PLUGIN = "oodatcaa_witness"
VARIABLE = "OODATCAA_WITNESS"
MOST_BYTES = 256_000_000
WITNESS_BYTES = 100_000
_LISTS = re.compile(r"&&|\|\||;|\n")
_COVERED = re.compile(r"\bcoverage run\b.*\s-m pytest\b")
_OWN_REPORT = re.compile(r"--junit-?xml\b")
_OWN_PATH = re.compile(
    r"\bPYTHONPATH=|\bPYTEST_ADDOPTS=|\benv\s+-|python[^\s;|&]*\s+-[a-zA-Z]*[EI]\b|--isolated\b"
)
"""Lines that keep our plugin out, without any bad will."""
_HEAD = re.compile(r"<testsuite\b([^>]*)>")
_NUMBER = re.compile(r'\b(errors|failures|skipped|tests)="(\d+)"')


@dataclass(frozen=True)
class TestReport:
    """What pytest itself counted; an error in a fixture counts as a failure."""

    __test__ = False

    tests: int
    skipped: int
    failed: int
    note: str = ""


@dataclass(frozen=True)
class Asked:
    """Where one run has to leave what: `report` is None for a line that asks for a report of its
    own, `witness` for one that keeps the plugin out."""

    report: Path | None
    witness: Path | None
    nonce: str

    def environment(self, env: dict[str, str]) -> dict[str, str]:
        options = [f"--junitxml={self.report}", "-o", "junit_logging=no"] if self.report else []
        if self.witness is None:
            return {**env, "PYTEST_ADDOPTS": shlex.join(options)}
        paths = [str(PLUGIN_FOLDER), env.get("PYTHONPATH", "")]
        return {
            **env,
            "PYTEST_ADDOPTS": shlex.join(["-p", PLUGIN, *options]),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            VARIABLE: str(self.witness),
        }

    def read(self) -> TestReport | str:
        """The counts of a whole report that the witness bears out; a string says why not."""
        found = read_report(self.report) if self.report else None
        if self.witness is None or isinstance(found, str):
            return found or "nothing was asked of it"
        return _borne_out(found, self.witness, self.nonce)


def ask(command: str, folder: Path) -> Asked | None:
    """Prepare `folder` for the pytest of this command; None when the command runs none by a plain
    call, or one that can leave neither a report nor a word of the plugin."""
    parts = [part.strip() for part in _LISTS.split(command)]
    runs = sum(1 for part in parts if _COVERED.search(part) or _is_pytest(part))
    own_report = _OWN_REPORT.search(command) is not None
    keeps_out = runs > 1 or _OWN_PATH.search(command) is not None
    if not runs or (own_report and keeps_out):
        return None
    name, nonce = secrets.token_hex(16), secrets.token_hex(16)
    report = None if own_report else folder / f"report-{name}.xml"
    if keeps_out:
        return Asked(report, None, "")
    witness = folder / f"witness-{name}"
    witness.write_text(nonce, encoding="ascii")
    return Asked(report, witness, nonce)


def read_report(report: Path) -> TestReport | str:
    """The counts of a whole JUnit report; a string says why there is none."""
    try:
        if report.stat().st_size > MOST_BYTES:
            return "pytest's report is too large to be read"
        text = report.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "pytest left no report: it did not come to its end"
    head = _HEAD.search(text)
    numbers = {name: int(value) for name, value in _NUMBER.findall(head[1])} if head else {}
    if not text.rstrip().endswith("</testsuites>") or len(numbers) != 4:
        return "pytest's report is not whole: it did not come to its end"
    return TestReport(
        tests=numbers["tests"],
        skipped=numbers["skipped"],
        failed=numbers["failures"] + numbers["errors"],
    )


def _borne_out(report: TestReport | None, witness: Path, nonce: str) -> TestReport | str:
    try:
        with witness.open("rb") as file:
            said = json.loads(file.read(WITNESS_BYTES))
        numbers = {name: int(said[name]) for name in ("ran", "failed", "deselected", "left")}
        denied = [str(name) for name in said["denied"]]
        known = said["nonce"] == nonce
    except (OSError, ValueError, KeyError, TypeError):
        return "the framework's plugin saw no end of the run: its report was made by something else"
    if not known:
        return "what the framework's plugin saw was written by something else"
    if denied:
        return f"{denied[0]} raised an error and was reported as passed"
    found = report or TestReport(tests=numbers["ran"], skipped=0, failed=numbers["failed"])
    if numbers["left"] and found.tests > found.skipped:
        return f"{numbers['left']} of the collected tests were never begun"
    if not numbers["ran"] and found.tests > found.skipped and not numbers["failed"]:
        return "the framework's plugin saw no test run: its report was made by something else"
    return TestReport(
        tests=found.tests,
        skipped=found.skipped,
        failed=max(found.failed, numbers["failed"]),
        note=f"{numbers['deselected']} deselected" if numbers["deselected"] else "",
    )


def _is_pytest(part: str) -> bool:
    found = preset_for(part)
    return found is not None and found.name == "pytest"
