"""What a command's exit code and output mean; pure.

The exit code decides. The output is shown, and read only against the work: to tell findings from a
crash, to see that nothing was checked, and to count findings for a baseline.
"""

from __future__ import annotations

import json
import re
import signal
from dataclasses import dataclass, replace

from oodatcaa.domain.evidence import Baseline, GateSpec, Verdict
from oodatcaa.domain.gate_presets import UNREACHABLE, Counting, GatePreset, preset_for
from oodatcaa.gates import tools
from oodatcaa.gates.judging import Judgement, crashed, failed, not_run, one_line, passed, with_note
from oodatcaa.gates.pytest_runs import Asked
from oodatcaa.kit.process import CommandResult

NO_TESTS_RAN = 5
"""pytest's exit code (and unittest's since Python 3.12) when nothing was collected."""
MAX_LINE = 2_000
_TEST_RUNNER = re.compile(r"\b(pytest|py\.test|unittest)\b")
_NO_MODULE = re.compile(r"^\S*python[\d.]*(?:\.exe)?: No module named (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Reading:
    """`findings` is None when the output does not tell; `comparable` when a baseline may excuse
    them."""

    judgement: Judgement
    findings: float | None = None
    comparable: bool = False


def read_command(gate: GateSpec, command: str, result: CommandResult, text: str) -> Reading:
    """`command` is the line that ran, `text` its stored output."""
    reading = _read_success(gate, command, result, text)
    if gate.expect == "failure":
        reading = Reading(_expecting_failure(gate, command, result, text))
    if gate.expect_output and gate.expect_output not in text:
        note = f"warning: its output does not say {gate.expect_output!r}"
        reading = replace(reading, judgement=with_note(reading.judgement, note))
    return reading


def _expecting_failure(gate: GateSpec, command: str, result: CommandResult, text: str) -> Judgement:
    """A test written before its code must fail. The exit status decides: an import that fails is
    as red as an assertion, but what did not run or had nothing to run has shown nothing."""
    said = _last_line(text)
    plain = _unfinished(gate, result, said) or _not_installed(result, text)
    if plain is not None:
        return plain
    if result.exit_code == 0:
        return failed("it succeeds already, but had to fail at this point", said)
    if result.exit_code == NO_TESTS_RAN and _TEST_RUNNER.search(command):
        return crashed("exit code 5: no tests ran")
    return passed(f"fails as expected with exit code {result.exit_code}: {said}")


def _read_success(gate: GateSpec, command: str, result: CommandResult, text: str) -> Reading:
    preset = preset_for(gate.command, gate.preset)
    said = _last_line(text)
    plain = _unfinished(gate, result, said) or _not_installed(result, text)
    if plain is not None:
        return Reading(plain)
    assert result.exit_code is not None
    if preset is not None:
        return _read_tool(preset, result.exit_code, text, said, strict=bool(gate.preset))
    if result.exit_code == 0:
        return Reading(passed(f"exit code 0: {said}" if said else "ok"))
    if result.exit_code == NO_TESTS_RAN and _TEST_RUNNER.search(command):
        return Reading(crashed("exit code 5: no tests ran"))
    return Reading(failed(f"exit code {result.exit_code}", said))


def _unfinished(gate: GateSpec, result: CommandResult, said: str) -> Judgement | None:
    code = result.exit_code
    if result.stopped:
        return not_run("stopped before it ended")
    if result.timed_out or code is None:
        return failed(f"did not end within {gate.timeout_seconds} s and was stopped", said)
    if code in (126, 127):
        return crashed(f"exit code {code}, the command could not be started", said)
    number = -code if code < 0 else code - 128 if code > 128 and _is_signal(code - 128) else 0
    if number:
        hint = {signal.SIGXCPU: ", its CPU limit", signal.SIGXFSZ: ", its file size limit"}
        why = hint.get(signal.Signals(number), "") if _is_signal(number) else ""
        return crashed(f"ended by signal {_signal_name(number)}{why}", said)
    return None


def _not_installed(result: CommandResult, text: str) -> Judgement | None:
    missing = _NO_MODULE.search(text) if result.exit_code == 1 else None
    if missing is None:
        return None
    return crashed(f"{missing[1]} is not installed in the gates' environment")


def _read_tool(preset: GatePreset, code: int, text: str, said: str, *, strict: bool) -> Reading:
    found = count_findings(preset, text)
    if (code == NO_TESTS_RAN and preset.name in ("pytest", "coverage")) or _says(
        preset.nothing, text
    ):
        return Reading(crashed(f"exit code {code}: it found nothing to check", said))
    if code == 0:
        shown = _amount(preset, found) if found else said
        return Reading(passed(f"exit code 0: {shown}" if shown else "ok"), found or 0.0, True)
    broken = _says(preset.broken_code, text)
    if not found and not broken and _says(UNREACHABLE, text):
        return Reading(not_run("it could not reach what it needs from the network: " + said))
    if code in preset.findings_codes and (found is not None or not strict):
        if found == 0 and preset.better == "lower" and strict:
            return Reading(crashed(f"exit code {code}, but no findings", said))
        shown = _amount(preset, found) if found is not None else f"exit code {code}: {said}"
        comparable = code in preset.comparable_codes and not broken
        return Reading(failed(shown), found, comparable)
    if broken:
        return Reading(failed(f"exit code {code}, the code could not be checked", said))
    if _says(UNREACHABLE, text):
        return Reading(not_run("it could not reach what it needs from the network: " + said))
    return Reading(crashed(f"exit code {code}, which is not how it reports findings", said))


def confirmed(
    reading: Reading, preset: GatePreset | None, command: str, text: str, asked: Asked | None
) -> Reading:
    """The reading, if the tool left what only a finished run leaves; `asked` is what pytest had to
    leave, None = nothing was asked of it."""
    verdict = reading.judgement.verdict
    if verdict is Verdict.PASSED and tools.mypy_said_nothing(preset, command, text):
        return Reading(crashed("exit code 0, but mypy does not say what it checked"))
    if asked is None or not (verdict is Verdict.PASSED or reading.comparable):
        return reading
    found = asked.read()
    if isinstance(found, str):
        return Reading(crashed(f"{reading.judgement.detail}, but {found}"))
    if found.tests <= found.skipped:
        return Reading(crashed(f"{reading.judgement.detail}, but its report has no test that ran"))
    if found.failed and verdict is Verdict.PASSED:
        count = f"{found.failed} of {found.tests} tests"
        return Reading(crashed(f"{reading.judgement.detail}, but its report says {count} failed"))
    if found.note:
        reading = replace(reading, judgement=with_note(reading.judgement, found.note))
    if preset is not None and preset.name == "pytest":
        return replace(reading, findings=float(found.failed))
    return reading


def compare(
    gate: GateSpec, reading: Reading, base: Baseline | None, problem: str = ""
) -> Judgement:
    """A baseline's verdict: no more findings than on the target branch (or no less coverage)."""
    preset = preset_for(gate.command, gate.preset)
    now = reading.judgement
    if (
        not reading.comparable
        or preset is None
        or now.verdict
        not in (
            Verdict.PASSED,
            Verdict.FAILED,
        )
    ):
        return now
    if base is None:
        if now.verdict is Verdict.PASSED and preset.better == "lower":
            return now
        return crashed(f"{now.detail}; nothing to compare with on the target branch: {problem}")
    if reading.findings is None:
        return crashed(f"{now.detail}; its findings can not be counted for the baseline")
    mine = _amount(preset, reading.findings)
    theirs = f"{_number(base.findings)} on {base.branch} ({base.commit[:12]})"
    worse = (
        reading.findings > base.findings
        if preset.better == "lower"
        else reading.findings < base.findings
    )
    return failed(f"{mine}, {theirs}") if worse else passed(f"{mine}, no worse than {theirs}")


def count_findings(preset: GatePreset, text: str) -> float | None:
    """By the first way that fits; None when none does."""
    for way in preset.counting:
        found = _count(way, text)
        if found is not None:
            return found
    return None


def _count(way: Counting, text: str) -> float | None:
    if way.how == "json_list":
        value = _json(text, "[")
        return float(len(value)) if isinstance(value, list) else None
    if way.how == "json_lines":
        each = [_json(line, "{") for line in text.splitlines() if line.startswith("{")]
        found = sum(1 for row in each if isinstance(row, dict) and row.get(way.path) == way.items)
        return float(found) or None
    if way.how == "json_sum":
        value = _json(text, "{")
        rows = value.get(way.items) if isinstance(value, dict) else None
        if not isinstance(rows, list):
            return None
        lists = [row.get(way.path) for row in rows if isinstance(row, dict)]
        return float(sum(len(item) for item in lists if isinstance(item, list)))
    # Other programs' lines may be of any length; no finding is.
    lines = [line for line in text.splitlines() if len(line) <= MAX_LINE]
    pattern = re.compile(way.pattern)
    if way.how == "lines":
        return float(sum(1 for line in lines if pattern.search(line))) or None
    for line in reversed(lines):
        numbers = pattern.findall(line)
        if numbers:
            return float(sum(float(number) for number in numbers))
    return None


def _json(text: str, opening: str) -> object:
    """The last JSON value that begins a line with `opening`; warnings may stand around it."""
    decoder = json.JSONDecoder()
    starts = [found.start() for found in re.finditer(rf"^{re.escape(opening)}", text, re.MULTILINE)]
    for start in starts:
        try:
            return decoder.raw_decode(text, start)[0]
        except (ValueError, RecursionError):
            continue
    return None


def _says(pattern: str, text: str) -> bool:
    if not pattern:
        return False
    compiled = re.compile(pattern)
    return any(compiled.search(line) for line in text.splitlines() if len(line) <= MAX_LINE)


def _amount(preset: GatePreset, found: float | None) -> str:
    if found is None:
        return ""
    number = _number(found)
    return f"{number}{preset.unit}" if preset.unit.startswith("%") else f"{number} {preset.unit}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.2f}"


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return one_line(lines[-1], 160) if lines else ""


def _is_signal(number: int) -> bool:
    return number in {int(item) for item in signal.Signals}


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if _is_signal(number) else str(number)
