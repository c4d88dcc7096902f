"""The tools themselves, run by gates: findings, crashes, nothing to check, baselines."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from oodatcaa.domain.evidence import Evidence, GateKind, GateSpec, ResourceLimits, Verdict
from oodatcaa.domain.gate_presets import PRESETS, preset_for
from oodatcaa.gates.reading import read_command
from oodatcaa.kit.config import Config, GatesConfig
from oodatcaa.kit.process import CommandResult
from oodatcaa.vcs import Repository

Check = Callable[..., tuple[Evidence, ...]]
Change = Callable[[dict[str, str | None]], str]
PASSED, FAILED, CRASHED, NOT_RUN = Verdict.PASSED, Verdict.FAILED, Verdict.CRASHED, Verdict.NOT_RUN


def gate(name: str, command: str = "", **more: object) -> GateSpec:
    values = {"id": f"G-{name}", "name": name, "kind": GateKind.COMMAND, "preset": name}
    line = command or PRESETS[name].command
    return GateSpec.model_validate({**values, "command": line, **more})


AUDIT = 'WARNING: x\n{"dependencies": [{"name": "a", "vulns": [{}, {}]}, {"name": "b"}]}\n'
NO_NET = "ConnectionError: HTTPSConnectionPool(host='pypi.org'): Max retries exceeded\n"


@pytest.mark.parametrize(
    ("name", "code", "text", "verdict", "findings"),
    [
        ("black", 0, "All done!\n3 files would be left unchanged.\n", PASSED, 0),
        ("black", 1, "would reformat a.py\nOh no!\n2 files would be reformatted.\n", FAILED, 2),
        ("black", 123, "error: cannot format a.py: Cannot parse\n", CRASHED, None),
        ("ruff", 1, "warning: x\n[\n  {},\n  {}\n]\n", FAILED, 2),
        ("ruff", 2, "ruff failed\n  Cause: bad config\n", CRASHED, None),
        ("ruff", 1, "something else\n", CRASHED, None),
        ("ruff", 0, "warning: No Python files found under the given path(s)\n[]\n", CRASHED, None),
        ("mypy", 0, "Success: no issues found in 3 source files\n", PASSED, 0),
        ("mypy", 1, "a.py:1: error: x [y]\nFound 401 errors in 9 files (checked 9)\n", FAILED, 401),
        ("mypy", 1, '{"file": "a.py", "severity": "error"}\n{"severity": "note"}\n', FAILED, 1),
        ("mypy", 2, "a.py:1: error: Invalid syntax  [syntax]\nFound 1 error in 1 file\n", FAILED,
         None),
        ("mypy", 2, "mypy: INTERNAL ERROR\n", CRASHED, None),
        ("mypy", 1, "Traceback (most recent call last):\nKeyError: 'x'\n", CRASHED, None),
        ("pytest", 0, "..\n2 passed in 0.1s\n", PASSED, 0),
        ("pytest", 1, "F.E\n2 failed, 1 passed, 1 error in 0.1s\n", FAILED, 3),
        ("pytest", 5, "no tests ran in 0.01s\n", CRASHED, None),
        ("pytest", 0, "ss\n2 skipped in 0.01s\n", CRASHED, None),
        ("pytest", 0, "s.\n1 passed, 1 skipped in 0.01s\n", PASSED, 0),
        ("pytest", 2, "Interrupted: 1 error during collection\n1 error in 0.1s\n", FAILED, None),
        ("pytest", 3, "INTERNALERROR> KeyError\n", CRASHED, None),
        ("pytest", 4, "ERROR: usage\n", CRASHED, None),
        ("coverage", 0, "2 passed\nTOTAL   10   1   90%\n", PASSED, 90),
        ("coverage", 2, "2 passed\nTOTAL   10   4   60%\nCoverage failure\n", FAILED, 60),
        ("coverage", 1, "1 failed, 2 passed in 0.1s\n", FAILED, None),
        ("coverage", 1, "No data to report.\n", CRASHED, None),
        ("coverage", 5, "no tests ran in 0.01s\n", CRASHED, None),
        ("build", 1, "ERROR Backend subprocess exited when trying to invoke build_wheel\n", FAILED,
         None),
        ("build", 1, NO_NET, NOT_RUN, None),
        ("pip-audit", 0, '{"dependencies": []}\n', PASSED, 0),
        ("pip-audit", 1, AUDIT, FAILED, 2),
        ("pip-audit", 1, NO_NET, NOT_RUN, None),
        ("pip-audit", 1, "ERROR: something\n", CRASHED, None),
        ("pip-check", 0, "No broken requirements found.\n", PASSED, 0),
        ("pip-check", 1, "a 1.0 requires b, which is not installed.\n", FAILED, 1),
        ("pip-check", 1, "/x/bin/python: No module named pip\n", CRASHED, None),
        ("mypy", None, "", FAILED, None),
        ("mypy", -9, "", CRASHED, None),
        ("mypy", 137, "Killed\n", CRASHED, None),
        ("mypy", 127, "not found\n", CRASHED, None),
    ],
)  # fmt: skip
def test_what_tools_say(
    name: str, code: int | None, text: str, verdict: Verdict, findings: float | None
) -> None:
    result = CommandResult(
        exit_code=code, duration=1, output_sha256="0" * 64, output_bytes=len(text), tail=text,
        timed_out=code is None,
    )  # fmt: skip
    reading = read_command(gate(name), "line", result, text)
    assert reading.judgement.verdict is verdict, reading
    assert not reading.comparable or reading.findings == findings


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("{python} -m pytest -q", "pytest"),
        ("A=1 uv run pytest tests", "pytest"),
        (".venv/bin/ruff check .", "ruff"),
        ("ruff format --check", "ruff-format"),
        ("ruff format", None),
        ("python3 -m pip check", "pip-check"),
        ("pip install x", None),
        ("pytest | tee log", None),
        ("pytest; true", None),
        ("python pytest.py", None),
        ("make test", None),
        ("'", None),
        ("", None),
    ],
)
def test_a_plain_command_is_recognised(command: str, name: str | None) -> None:
    preset = preset_for(command)
    assert (preset.name if preset else None) == name


BAD = "import os\n\nx: int = 'a'\ny: int = 'b'\n"
WORSE = BAD + "z: int = 'c'\n"


@pytest.mark.slow
def test_real_tools_and_a_baseline(
    check: Check, commit_change: Change, root: Path, repo: Repository
) -> None:
    (root / "src/shop/old.py").write_text(BAD)
    repo.commit_files(root, ["src/shop/old.py"], "feat: an old project with findings")
    same = commit_change({"src/shop/old.py": BAD, "README.md": "changed\n"})
    names = ("ruff", "mypy", "black")
    strict = check(same, *(gate(name) for name in names), target="main")
    assert [item.verdict for item in strict] == [FAILED] * 3
    assert [item.findings for item in strict] == [1, 2, 1]
    assert strict[1].detail == "2 type errors"
    assert {"python", "ruff", "mypy", "black"} <= strict[0].tools.keys()
    assert strict[1].output_tail.rstrip().endswith("source files)")

    relaxed = [gate(name, baseline=True) for name in names]
    kept = check(same, *relaxed, target="main")
    assert [item.verdict for item in kept] == [PASSED] * 3
    assert "2 type errors, no worse than 2 on main" in kept[1].detail
    assert kept[1].baseline is not None
    assert kept[1].baseline.commit == repo.resolve("main")

    worse = commit_change({"src/shop/old.py": WORSE})
    (more,) = check(worse, gate("mypy", baseline=True), target="main")
    assert (more.verdict, more.findings) == (FAILED, 3)
    assert more.detail.startswith("3 type errors, 2 on main")
    broken = commit_change({"src/shop/old.py": "def (\n"})
    (syntax,) = check(broken, gate("mypy", baseline=True), target="main")
    assert syntax.verdict is FAILED


def test_a_check_that_mends_the_code_has_not_checked_it(
    check: Check, commit_change: Change
) -> None:
    commit = commit_change({"src/shop/old.py": "import os\n"})
    (found,) = check(commit, gate("ruff", "{python} -m ruff check --fix --no-cache ."))
    assert found.verdict is FAILED
    assert "changed tracked files: src/shop/old.py" in found.detail


def test_limits_end_a_gate_that_takes_too_much(check: Check, tmp_path: Path) -> None:
    def limited(line: str, **limits: int) -> GateSpec:
        return GateSpec(
            id="G1", name="g", kind=GateKind.COMMAND, command=line,
            limits=ResourceLimits(**limits),
        )  # fmt: skip

    found = check(
        "main",
        limited("{python} -c 'while True: pass'", cpu_seconds=1),
        limited(f"dd if=/dev/zero of={tmp_path}/big bs=1000000 count=9", file_bytes=1_000_000),
        *(
            [limited("{python} -c 'x = bytearray(2_000_000_000)'", memory_bytes=500_000_000)]
            if sys.platform == "linux"
            else []
        ),
    )
    assert [item.verdict for item in found[:2]] == [CRASHED, CRASHED]
    assert "SIGXCPU, its CPU limit" in found[0].detail
    assert "SIGXFSZ, its file size limit" in found[1].detail
    assert (tmp_path / "big").stat().st_size <= 1_000_000
    for item in found[2:]:
        assert (item.verdict, "MemoryError" in item.detail) == (FAILED, True)


def test_an_environment_is_made_once_and_again_when_it_was_touched(
    check: Check, commit_change: Change, tmp_path: Path
) -> None:
    log = tmp_path / "made"
    config = GatesConfig(
        setup=(f"echo made >> {log}; {sys.executable} -m venv --without-pip {{env}}",),
    )
    where = '{python} -c "import sys, shop; print(sys.prefix, shop.__file__)"'
    (first,) = check("main", where, config=config)
    (second,) = check("main", where, config=config)
    assert (first.verdict, second.verdict) == (PASSED, PASSED), first.detail
    assert first.environment == second.environment
    assert first.environment is not None
    assert first.environment in first.output_tail
    assert log.read_text() == "made\n"
    other = commit_change({"requirements.txt": "six\n"})
    (third,) = check(other, where, config=config)
    assert third.environment not in (None, first.environment)
    assert log.read_text() == "made\n" * 2
    poison = "echo 'raise SystemExit(0)' > {env}/sitecustomize.py; exit 1"
    (cheat,) = check("main", poison, config=config)
    assert "changed its environment" in cheat.detail
    check("main", where, config=config)
    assert log.read_text() == "made\n" * 3


def test_every_preset_starts_its_real_tool(root: Path) -> None:
    for preset in PRESETS.values():
        module = preset.command.split(" -m ", 1)[1].split()[0]
        done = subprocess.run(
            [sys.executable, "-c", f"import {module}"], cwd=root, check=False, timeout=60
        )
        assert done.returncode == 0, module


def test_what_the_how_to_shows_is_a_valid_configuration() -> None:
    page = Path(__file__).parents[2] / "docs/how-to/old-project.md"
    blocks = re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        Config.model_validate(tomllib.loads(block))
