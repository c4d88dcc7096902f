"""The code that gates run is the submitted commit's, whatever is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from oodatcaa.domain.evidence import Evidence, Verdict
from oodatcaa.gates.environment import find_packages, gate_environment
from oodatcaa.kit.config import GatesConfig
from oodatcaa.vcs import Repository

Check = Callable[..., tuple[Evidence, ...]]
Change = Callable[[dict[str, str | None]], str]
TOTAL = '{python} -c "from shop.price import total; assert total(2, 3) == 5"'
DEFECT: dict[str, str | None] = {"src/shop/price.py": "def total(a, b):\n    return a - b\n"}

FINDER = """
import sys
from importlib.machinery import PathFinder

class Finder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "shop":
            return PathFinder.find_spec(name, [{source!r}])

sys.meta_path.insert(0, Finder)
"""


@pytest.fixture
def installed(tmp_path: Path, root: Path) -> Callable[[str], Path]:
    """A virtual environment in which the main checkout is installed editable; its python."""

    def make(kind: str) -> Path:
        folder = tmp_path / "gate env"
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120
        )
        site = next(folder.glob("lib/python*/site-packages"))
        if kind == "path":
            (site / "shop.pth").write_text(f"{root / 'src'}\n")
        else:
            (site / "_shop_finder.py").write_text(FINDER.format(source=str(root / "src")))
            (site / "shop.pth").write_text("import _shop_finder\n")
        python = folder / "bin" / "python"
        asked = "import shop; print(shop.__path__[0])"
        found = subprocess.run(
            [str(python), "-c", asked], capture_output=True, text=True, cwd="/", check=True
        )
        assert found.stdout.strip() == str(root / "src" / "shop")
        return python

    return make


def test_a_defect_that_is_only_in_the_commit_fails_beside_an_editable_install(
    installed: Callable[[str], Path], commit_change: Change, check: Check, tmp_path: Path
) -> None:
    config = GatesConfig(python=str(installed("path")))
    (good,) = check("main", TOTAL, config=config)
    (bad,) = check(commit_change(DEFECT), TOTAL, config=config)
    assert (good.verdict, bad.verdict) == (Verdict.PASSED, Verdict.FAILED)
    assert bad.code_path is not None
    assert Path(bad.code_path).is_relative_to(tmp_path)
    assert "check-gates-T001-B01" in bad.code_path
    assert bad.code_path.endswith("/src/shop")


def test_an_install_that_goes_before_the_worktree_is_crashed_not_passed(
    installed: Callable[[str], Path], commit_change: Change, check: Check, root: Path
) -> None:
    config = GatesConfig(python=str(installed("finder")))
    found = check(commit_change(DEFECT), TOTAL, "true", config=config)
    assert [item.verdict for item in found] == [Verdict.CRASHED, Verdict.CRASHED]
    assert str(root / "src" / "shop") in found[0].detail
    assert found[0].exit_code is None


def test_a_package_that_the_commit_removed_does_not_come_from_the_main_checkout(
    installed: Callable[[str], Path], commit_change: Change, check: Check
) -> None:
    sha = commit_change({"src/shop/__init__.py": None, "src/shop/price.py": None})
    (found,) = check(sha, TOTAL, config=GatesConfig(python=str(installed("path"))))
    assert found.verdict is Verdict.CRASHED
    assert "shop is not in the commit" in found.detail


def test_tools_do_not_pick_up_the_main_checkouts_settings(
    root: Path, commit_change: Change, check: Check
) -> None:
    """pytest searches upwards for its settings and runs the conftest.py it finds there."""
    sha = commit_change({"pytest.ini": None})
    (root / "pytest.ini").write_text("[pytest]\naddopts = -k nothing\n")
    (root / "conftest.py").write_text("raise RuntimeError('code of the main checkout')\n")
    (found,) = check(sha, "{python} -m pytest -q")
    assert found.verdict is Verdict.PASSED, found.detail


def test_a_configured_package_must_be_there(check: Check) -> None:
    (found,) = check("main", "true", config=GatesConfig(packages=("shop", "warehouse")))
    assert (found.verdict, "warehouse" in found.detail) == (Verdict.CRASHED, True)


def test_the_crews_own_python_path_does_not_bring_the_main_checkout(
    root: Path, commit_change: Change, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(root / "src"))
    (found,) = check(commit_change(DEFECT), TOTAL)
    assert found.verdict is Verdict.FAILED


def test_a_package_is_found_without_running_it(commit_change: Change, check: Check) -> None:
    sha = commit_change({"src/shop/__init__.py": "raise SystemExit(9)\n"})
    (found,) = check(sha, "true")
    assert found.verdict is Verdict.PASSED
    assert str(found.code_path).endswith("/src/shop")


def test_packages_are_found_in_both_layouts(tmp_path: Path) -> None:
    for name in (
        "src/a/__init__.py", "src/single.py", "b/__init__.py", "tests/__init__.py",
        "docs/x.py", "not-a-name/__init__.py", "src/a/deep/__init__.py",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert find_packages(tmp_path) == ("a", "b", "single")


def test_the_environment_is_the_gates_own(
    root: Path, check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaks = {
        "GIT_DIR": str(tmp_path), "GIT_INDEX_FILE": "x", "PYTEST_ADDOPTS": "-k nothing",
        "PYTHONOPTIMIZE": "2", "PYTHONHOME": "", "PYTHONSTARTUP": "x", "VIRTUAL_ENV": "/other",
    }  # fmt: skip
    for name, value in leaks.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", f"{root / 'src'}:relative:{tmp_path / 'other'}")
    monkeypatch.setenv("KEPT", "yes")
    shims = tmp_path / "shims"
    env = gate_environment(root, Path("/usr/bin/env"), root, shims)
    assert not set(leaks) & set(env)
    assert (env["KEPT"], env["PYTHONNOUSERSITE"]) == ("yes", "1")
    assert env["PYTHONPATH"].split(os.pathsep) == [
        str(root / "src"), str(root), str(tmp_path / "other")
    ]  # fmt: skip
    assert env["PATH"].startswith(str(shims))
    monkeypatch.delenv("PYTHONHOME")
    prefix = 'python -c "import sys; print(sys.prefix)"'
    git_here = 'test "$(git rev-parse --show-toplevel)" = "$PWD"'
    seen = check("main", f'test "$({prefix})" = "{sys.prefix}"', git_here)
    assert [item.verdict for item in seen] == [Verdict.PASSED, Verdict.PASSED], seen


def test_shims_stand_in_for_a_python_without_that_name(tmp_path: Path, root: Path) -> None:
    odd = tmp_path / "odd's bin" / "python-special"
    odd.parent.mkdir()
    odd.write_text(f"#!/bin/sh\nprintf 'odd '\nexec '{sys.executable}' \"$@\"\n")
    odd.chmod(0o755)
    env = gate_environment(root, odd, root, tmp_path / "shims")
    result = subprocess.run(
        ["python", "-c", "print('a b')"], env=env, capture_output=True, text=True, check=True
    )
    assert result.stdout == "odd a b\n"


def test_setup_makes_the_environment_in_the_worktree(check: Check, repo: Repository) -> None:
    config = GatesConfig(
        python=".venv/bin/python",
        setup=(
            "{python} -m venv --without-pip .venv",
            "echo made > made.txt; echo spoilt > README.md",
        ),
    )
    here = 'python -c "import sys; print(sys.prefix)"'
    found = check(
        "main",
        'test "$(cat README.md)" = "a shop"',
        f'case "$({here})" in {{worktree}}/.venv) exit 0;; esac; exit 1',
        "test -f made.txt",
        'test "$VIRTUAL_ENV" = {worktree}/.venv',
        config=config,
    )
    assert [item.verdict for item in found] == [Verdict.PASSED] * 4, found
    assert not any("undone" in item.detail for item in found)
    assert repo.prune_checks() == ()


def test_a_setup_that_fails_crashes_the_commands_and_says_why(
    check: Check, repo: Repository
) -> None:
    config = GatesConfig(setup=("echo no network; exit 3", "touch never"))
    found = check("main", "true", "true", config=config)
    assert {item.verdict for item in found} == {Verdict.CRASHED}
    assert "exit code 3" in found[0].detail
    output = repo.work_dir / found[0].detail.rsplit("see ", 1)[1]
    assert output.read_text() == "no network\n"


def test_an_interpreter_that_does_not_exist_is_crashed(check: Check) -> None:
    (found,) = check("main", "true", config=GatesConfig(python="/no/such/python"))
    assert found.verdict is Verdict.CRASHED
    assert "/no/such/python does not exist" in found.detail
