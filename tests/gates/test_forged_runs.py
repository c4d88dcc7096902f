"""A commit whose test run reports what did not happen is crashed; honest runs of all kinds pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from oodatcaa.domain.evidence import Evidence, GateKind, GateSpec, Verdict

Check = Callable[..., tuple[Evidence, ...]]
Change = Callable[[dict[str, str | None]], str]
PYTEST = "{python} -m pytest -q -p no:cacheprovider"
COVERAGE = (
    "{python} -m coverage run -m pytest -q -p no:cacheprovider && {python} -m coverage report"
)
BROKEN = "def total(a, b):\n    return a - b\n"
REPORT = (
    '<?xml version="1.0"?><testsuites><testsuite name="pytest" errors="0" failures="0" skipped="0" '
    'tests="3"></testsuite></testsuites>'
)
WRITES_A_REPORT = f"""
import os
def pytest_runtest_setup(item):
    with open(item.config.option.xmlpath, "w") as file:
        file.write({REPORT!r})
    os._exit(0)
"""
REPLACES_IT_AT_THE_END = f"""
import atexit, os
def pytest_configure(config):
    def last():
        with open(config.option.xmlpath, "w") as file:
            file.write({REPORT!r})
        os._exit(0)
    atexit.register(last)
"""
PASSES_EVERYTHING = """
import pytest
@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    report.outcome, report.longrepr = "passed", None
"""
ENDS_AFTER_ONE = """
import os
def pytest_runtest_logfinish(nodeid, location):
    session.config.hook.pytest_sessionfinish(session=session, exitstatus=0)
    os._exit(0)
def pytest_sessionstart(session):
    globals()["session"] = session
"""
ANSWERS_FOR_US = f"""
import json, os
SAID = dict(nonce="", ran=1, failed=0, deselected=0, denied=[], left=0)
def pytest_runtest_setup(item):
    folder = os.path.dirname(item.config.option.xmlpath)
    for place, _, names in os.walk(folder):
        for name in names:
            if name.startswith("witness-"):
                with open(os.path.join(place, name), "w") as file:
                    json.dump(SAID, file)
    with open(item.config.option.xmlpath, "w") as file:
        file.write({REPORT!r})
    os._exit(0)
"""
KEEPS_US_OUT = "[pytest]\naddopts = -p no:oodatcaa_witness\n"
FIRST = "def test_first():\n    assert True\n"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"conftest.py": WRITES_A_REPORT}, "made by something else"),
        ({"conftest.py": REPLACES_IT_AT_THE_END}, "its report"),
        ({"conftest.py": PASSES_EVERYTHING}, "test_total raised an error and was reported as"),
        ({"conftest.py": ENDS_AFTER_ONE, "tests/test_a.py": FIRST}, "never begun"),
        ({"conftest.py": ANSWERS_FOR_US}, "written by something else"),
        ({"conftest.py": WRITES_A_REPORT, "pytest.ini": KEEPS_US_OUT}, "made by something else"),
        ({"sitecustomize.py": "import os\n"}, "would run in place of the tool"),
    ],
    ids=["writes", "replaces", "flips", "ends-early", "answers", "keeps-out", "sitecustomize"],
)
def test_a_forged_run_is_crashed(
    check: Check, commit_change: Change, files: dict[str, str], words: str
) -> None:
    commit = commit_change({"src/shop/price.py": BROKEN, **files})
    (found,) = check(commit, PYTEST)
    assert found.verdict is not Verdict.PASSED, found.detail
    assert found.verdict is Verdict.CRASHED, found.detail
    assert words in found.detail


NESTED = """
import os, subprocess, sys
def test_that_starts_pytest(tmp_path):
    (tmp_path / "test_in.py").write_text("def test_in(): pass")
    for env in ({"PATH": os.environ["PATH"]}, None):
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
                              cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
"""


@pytest.mark.parametrize("option", ["--junitxml=mine.xml", "-rE"])
def test_no_option_of_a_plans_command_keeps_the_plugin_out(
    check: Check, commit_change: Change, option: str
) -> None:
    """Such a command is a known check, and runs unasked."""
    commit = commit_change({"src/shop/price.py": BROKEN, "conftest.py": WRITES_A_REPORT})
    (found,) = check(commit, f"{PYTEST} {option}")
    assert found.verdict is Verdict.CRASHED, found.detail
    (fine,) = check("main", f"{PYTEST} {option}")
    assert fine.verdict is Verdict.PASSED, fine.detail


HONEST = """
import unittest
import pytest
from shop.price import total

@pytest.mark.skip(reason="later")
def test_skipped(): pass

def test_plain(): assert total(1, 1) == 2

@pytest.mark.xfail(strict=True)
def test_expected(): assert total(1, 1) == 3

class Old(unittest.TestCase):
    def test_old(self):
        with self.subTest(n=1):
            self.assertEqual(total(2, 2), 4)
"""


def test_honest_runs_of_every_kind_pass(check: Check, commit_change: Change) -> None:
    commit = commit_change({"tests/test_more.py": HONEST, "tests/test_nested.py": NESTED})
    lines = (
        PYTEST,
        f"{PYTEST} -n 1 tests/test_more.py",
        f"{PYTEST} -k 'not old' tests/test_more.py",
        f"PYTHONPATH=src:. {PYTEST} tests/test_more.py",
        f"{PYTEST} tests/test_price.py && {PYTEST} tests/test_more.py",
    )
    found = check(commit, *lines)
    assert [item.verdict for item in found] == [Verdict.PASSED] * 5, [f.detail for f in found]
    assert "1 deselected" in found[2].detail


@pytest.mark.slow
def test_failures_stay_failures_and_coverage_measures_nothing_of_ours(
    check: Check, commit_change: Change
) -> None:
    (fine,) = check("main", COVERAGE)
    assert fine.verdict is Verdict.PASSED, fine.detail
    rows = [line.split()[1:] for line in fine.output_tail.splitlines() if "witness" in line]
    assert rows in ([], [["0", "0", "100%"]]), "nothing of ours is measured"
    commit = commit_change({"src/shop/price.py": BROKEN, "tests/test_a.py": FIRST})
    gate = GateSpec(id="G1", name="t", kind=GateKind.COMMAND, command=PYTEST, baseline=True)
    stops = gate.evolve(id="G2", command=f"{PYTEST} -x", baseline=False)
    counted, stopped = check(commit, gate, stops, target="main")
    assert (counted.verdict, counted.findings) == (Verdict.FAILED, 1.0), counted.detail
    assert stopped.verdict is Verdict.FAILED
