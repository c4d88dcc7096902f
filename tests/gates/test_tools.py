"""An exit code of 0 that no check stands behind is crashed, not passed."""

from __future__ import annotations

from collections.abc import Callable

from oodatcaa.domain.evidence import Evidence, GateKind, GateSpec, Verdict

Check = Callable[..., tuple[Evidence, ...]]
Change = Callable[[dict[str, str | None]], str]
PYTEST = "{python} -m pytest -q -p no:cacheprovider"
LEAVES = "import os\nos._exit(0)\n"


def test_a_test_run_that_was_left_is_crashed(check: Check, commit_change: Change) -> None:
    commit = commit_change({"conftest.py": LEAVES})
    for found in check(commit, PYTEST, f"echo start && {PYTEST}"):
        assert (found.verdict, found.exit_code) == (Verdict.CRASHED, 0)
        assert "pytest left no report" in found.detail


def test_tests_that_were_only_collected_are_crashed(check: Check, commit_change: Change) -> None:
    commit = commit_change({"pytest.ini": "[pytest]\naddopts = --collect-only\n"})
    (found,) = check(commit, PYTEST)
    assert (found.verdict, found.exit_code) == (Verdict.CRASHED, 0)
    assert "no test that ran" in found.detail


def test_a_commit_does_not_check_itself(check: Check, commit_change: Change) -> None:
    names = ("pytest.py", "ruff.py", "src/mypy/__init__.py")
    lines = (PYTEST, "{python} -m ruff check src", "mypy src")
    found = check(commit_change(dict.fromkeys(names, LEAVES)), *lines)
    assert [item.verdict for item in found] == [Verdict.CRASHED] * 3
    for item, name in zip(found, ("pytest.py", "ruff.py", "src/mypy"), strict=True):
        assert f"{name} in the commit would run in place of the tool" in item.detail


def test_a_module_of_the_commit_does_not_end_a_tool(check: Check, commit_change: Change) -> None:
    changes = {"argparse.py": LEAVES, "sysconfig.py": LEAVES, "src/shop/bad.py": "import os\n"}
    lines = ("{python} -m mypy src", "{python} -m ruff check --no-cache src/shop")
    types, lint = check(commit_change(dict(changes)), *lines)
    assert types.verdict is Verdict.CRASHED
    assert "does not say what it checked" in types.detail
    assert lint.verdict is Verdict.FAILED, "it needs no project, and does not see it"


def test_what_really_ran_still_passes(check: Check) -> None:
    lines = (PYTEST, f"echo start && {PYTEST} tests", "{python} -m mypy src")
    assert [item.verdict for item in check("main", *lines)] == [Verdict.PASSED] * 3


def test_a_baseline_takes_pytests_own_count(check: Check, commit_change: Change) -> None:
    lies = "import os\nprint('0 failed')\nos._exit(1)\n"
    gate = GateSpec(id="G1", name="t", kind=GateKind.COMMAND, command=PYTEST, baseline=True)
    (found,) = check(commit_change({"conftest.py": lies}), gate, target="main")
    assert found.verdict is Verdict.CRASHED, found.detail
