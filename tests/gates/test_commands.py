"""Command gates: the exit code decides, everything is kept, nothing leaks to the next gate."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from oodatcaa.domain.evidence import Evidence, GateKind, GateSpec, Verdict, verdict_of
from oodatcaa.gates import EvidenceStore
from oodatcaa.vcs import Repository

Check = Callable[..., tuple[Evidence, ...]]
Change = Callable[[dict[str, str | None]], str]


def command(line: str, **more: object) -> GateSpec:
    values = {"id": "G1", "name": "gate", "kind": GateKind.COMMAND, "command": line}
    return GateSpec.model_validate(values | more)


def gone(pid: int) -> bool:
    for _ in range(100):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_a_gate_that_lies_has_failed(check: Check) -> None:
    (found,) = check("main", "echo 'all 128 tests passed'; exit 1")
    assert (found.verdict, found.exit_code) == (Verdict.FAILED, 1)
    assert verdict_of((found,), (found.gate,))


def test_all_gates_run_even_when_the_first_fails(check: Check) -> None:
    found = check("main", "exit 1", "true", "exit 2")
    assert [item.verdict for item in found] == [Verdict.FAILED, Verdict.PASSED, Verdict.FAILED]
    assert [item.gate.id for item in found] == ["G1", "G2", "G3"]


def test_what_can_not_start_is_crashed(check: Check) -> None:
    found = check("main", "no-such-program-here", "./README.md", "   ", "kill -SEGV $$")
    assert [item.verdict for item in found] == [Verdict.CRASHED] * 4
    assert [item.exit_code for item in found] == [127, 126, None, -11]
    assert "SIGSEGV" in found[3].detail


def test_a_timeout_ends_the_whole_tree(check: Check, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    line = f"sh -c 'sleep 300 & echo $! > {note}; wait' & wait"
    (found,) = check("main", command(line, timeout_seconds=1))
    assert (found.verdict, found.exit_code) == (Verdict.FAILED, None)
    assert "1 s" in found.detail
    assert gone(int(note.read_text()))


def test_what_a_gate_leaves_running_is_ended(check: Check, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    (found,) = check("main", f"sleep 300 > /dev/null 2>&1 & echo $! > {note}")
    assert found.verdict is Verdict.PASSED
    assert gone(int(note.read_text()))


def test_real_tests_run_and_none_is_never_passed(check: Check, commit_change: Change) -> None:
    lines = ("{python} -m pytest -q -p no:cacheprovider", "{python} -m pytest -q tests")
    assert [item.verdict for item in check("main", *lines)] == [Verdict.PASSED] * 2
    emptied = commit_change({"tests/test_price.py": "# nothing is left\n"})
    assert [item.verdict for item in check(emptied, *lines)] == [Verdict.CRASHED] * 2
    deleted = commit_change({"tests/test_price.py": None})
    nothing, no_folder = check(deleted, *lines)
    assert nothing.verdict is Verdict.CRASHED
    assert no_folder.verdict is Verdict.CRASHED
    (other,) = check("main", "exit 5")
    assert other.verdict is Verdict.FAILED


def test_ten_megabytes_of_no_text_are_kept_and_hashed(check: Check, store: EvidenceStore) -> None:
    line = (
        '{python} -c "import sys; w = sys.stdout.buffer.write; '
        "[w(b'\\xff\\xfe\\x00\\x1b[31m' + b'x' * 991 + b'\\n') for _ in range(10_000)]; "
        "w(b'last \\xe9 line\\n'); sys.exit(3)\""
    )
    (found,) = check("main", line)
    assert (found.verdict, found.exit_code) == (Verdict.FAILED, 3)
    assert found.detail == "exit code 3: last \ufffd line"
    data = store.output_file(found.id).read_bytes()
    assert len(data) > 9_900_000
    assert hashlib.sha256(data).hexdigest() == found.output_sha256
    assert store.is_intact(found)
    store.output_file(found.id).write_bytes(b"polished")
    assert not store.is_intact(found)


def test_a_gate_that_changes_the_code_is_told_and_undone(check: Check, repo: Repository) -> None:
    cheat = "echo 'def total(a, b): return 5' > src/shop/price.py; echo x > tests/conftest.py"
    commit = "git -c user.name=x -c user.email=x@y commit -qam cheat"
    found = check(
        "main", f"{cheat}; {commit}", "git diff --quiet && test ! -e tests/conftest.py",
        'test "$(git rev-parse HEAD)" = "$(git rev-parse main)"',
    )  # fmt: skip
    verdicts = [item.verdict for item in found]
    assert verdicts == [Verdict.FAILED, Verdict.PASSED, Verdict.PASSED]
    assert "changed tracked files: src/shop/price.py" in found[0].detail
    assert "undone" in found[0].detail
    assert repo.status().clean


def test_a_gate_that_destroys_its_worktree_harms_nobody_else(
    check: Check, repo: Repository, root: Path
) -> None:
    (root / "README.md").write_text("unfinished work\n")
    found = check("main", "rm -rf .git src", "test -f src/shop/price.py")
    assert [item.verdict for item in found] == [Verdict.FAILED, Verdict.PASSED]
    assert "fresh worktree" in found[0].detail
    assert (root / "README.md").read_text() == "unfinished work\n"
    assert len(repo.worktrees()) == 1


def test_uncommitted_work_of_the_main_checkout_is_not_seen(check: Check, root: Path) -> None:
    (root / "new.txt").write_text("only here")
    (found,) = check("main", "test ! -e new.txt")
    assert found.verdict is Verdict.PASSED


def test_variables_reach_commands_and_scripts(check: Check, tmp_path: Path) -> None:
    run = tmp_path / 'it\'s a $run `x` "dir"'
    run.mkdir()
    (run / "a").write_text("")
    lines = (
        "test -f {run}/a",
        'test -f "{run}/a"',
        "test -f '{run}'/a",
        'test -f "$OODATCAA_RUN_DIR/a"',
        'test {worktree} = "$PWD" && test -x {python} && test "$OODATCAA_DATA_DIR" = /d',
        "lower=1; test ${lower} = 1 && echo '{{\"a\": 1}}' | grep -q '{{\"a'",
    )
    found = check("main", *lines, variables={"run": str(run), "data": "/d"})
    assert [item.verdict for item in found] == [Verdict.PASSED] * len(lines), found


def test_unknown_variables_are_crashed_all_at_once(check: Check) -> None:
    (found,) = check("main", "echo {adaptor} {run} {adaptor}")
    assert found.verdict is Verdict.CRASHED
    assert "{adaptor}, {run}" in found.detail


def test_evidence_says_what_where_and_when(
    check: Check, store: EvidenceStore, repo: Repository
) -> None:
    first, second = check("main", "echo hello", "true")
    (third,) = check("main", "true")
    assert [item.id for item in (first, second, third)] == [
        "E-T001-B01-a1-001-G1", "E-T001-B01-a1-002-G2", "E-T001-B01-a1-003-G1"
    ]  # fmt: skip
    assert first.commit == repo.resolve("main")
    assert (first.command, first.exit_code, first.detail) == ("echo hello", 0, "exit code 0: hello")
    assert first.host
    assert first.output_path == "evidence/T001/E-T001-B01-a1-001-G1.txt"
    assert (repo.work_dir / first.output_path).read_text() == "hello\n"
    assert store.load(first.id) == first
    assert store.of_story("T001") == (first, second, third)
    assert store.newest("T001")["G1"] == third


def test_a_stop_leaves_the_rest_not_run(check: Check) -> None:
    calls = []

    def stop() -> bool:
        calls.append(1)
        return len(calls) > 3

    found = check("main", "sleep 60", "true", should_stop=stop)
    assert [item.verdict for item in found] == [Verdict.NOT_RUN] * 2


@pytest.mark.parametrize("flag", ["--assume-unchanged", "--skip-worktree"])
def test_a_change_that_git_is_told_to_overlook_is_seen_and_undone(check: Check, flag: str) -> None:
    hides = f"git update-index {flag} README.md && echo a mess > README.md"
    first, second = check("main", hides, "grep -q 'a shop' README.md")
    assert first.verdict is Verdict.FAILED, first.detail
    assert "it changed tracked files: README.md" in first.detail
    assert second.verdict is Verdict.PASSED


def test_a_gate_prepares_nothing_for_the_next_ones_tools(check: Check) -> None:
    names = "$MYPY_CACHE_DIR $BLACK_CACHE_DIR"
    writes = f"for name in {names}; do mkdir -p $name; touch $name/x; done; ls $MYPY_CACHE_DIR/x"
    first, second = check("main", writes, f"! ls {names} 2>&1 | grep x$")
    assert [first.verdict, second.verdict] == [Verdict.PASSED] * 2, second.output_tail
