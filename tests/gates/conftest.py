"""A real project in a real repository, and gates that really run."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from oodatcaa.domain.evidence import Evidence, GateKind, GateSpec
from oodatcaa.gates import EvidenceStore, GateRequest, GateRunner, MetricSource
from oodatcaa.kit.config import GatesConfig
from oodatcaa.vcs import Repository


@pytest.fixture(autouse=True)
def _own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("GIT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a cache"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """src/shop with a correct function and a test of it, committed."""
    root = tmp_path / "my project"
    files = {
        "src/shop/__init__.py": "",
        "src/shop/price.py": "def total(a, b):\n    return a + b\n",
        "tests/test_price.py": (
            "from shop.price import total\n\n\ndef test_total():\n    assert total(2, 3) == 5\n"
        ),
        "README.md": "a shop\n",
        "empty.txt": "",
        ".gitignore": ".oodatcaa/work/\n.oodatcaa/worktrees/\n__pycache__/\n.pytest_cache/\n",
        "pytest.ini": "[pytest]\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "-q", "-b", "main", str(root)], check=True, timeout=60)
    Repository.discover(root).first_commit(files, "chore: a shop")
    return root


@pytest.fixture
def repo(root: Path) -> Repository:
    return Repository.discover(root)


@pytest.fixture
def store(repo: Repository) -> EvidenceStore:
    return EvidenceStore(repo.work_dir)


@pytest.fixture
def commit_change(repo: Repository) -> Callable[[dict[str, str | None]], str]:
    """Commit files (None = delete) on the story's branch only; the main checkout stays fine."""

    def change(files: dict[str, str | None]) -> str:
        tree = repo.story_worktree("T001", "feat/T001-x", "main")
        for name, text in files.items():
            path = tree / name
            if text is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        sha = repo.commit_files(tree, None, "feat: change")
        assert sha is not None
        return sha

    return change


@pytest.fixture
def check(repo: Repository, store: EvidenceStore) -> Callable[..., tuple[Evidence, ...]]:
    """check(commit, *gates_or_commands, config=, metrics=, variables=, waivers=, …)"""

    def run(
        commit: str,
        *gates: GateSpec | str,
        config: GatesConfig | None = None,
        metrics: MetricSource | None = None,
        should_stop: Callable[[], bool] | None = None,
        **request: object,
    ) -> tuple[Evidence, ...]:
        specs = tuple(
            GateSpec(id=f"G{n}", name=gate[:40], kind=GateKind.COMMAND, command=gate)
            if isinstance(gate, str)
            else gate
            for n, gate in enumerate(gates, 1)
        )
        values = {"story": "T001", "task": "T001-B01", "attempt": 1, "commit": commit} | request
        runner = GateRunner(repo, store, config, metrics=metrics, should_stop=should_stop)
        return runner.run(GateRequest.model_validate(values | {"gates": specs}))

    return run
