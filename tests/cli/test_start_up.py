"""What the commands that people type all day do not load: each of these costs a noticeable time."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from oodatcaa.domain.board import Decision
from oodatcaa.state.store import QueueStore
from queue_making import board, sprint

NEVER = (
    *("mlx", "mlx_lm", "transformers", "tokenizers", "numpy", "matplotlib", "hypothesis"),
    *("rich", "typer.rich_utils", "git", "jsonschema", "yaml", "psutil", "filelock"),
    *("asyncio", "multiprocessing", "unittest"),
    *("oodatcaa.training", "oodatcaa.pool", "oodatcaa.vcs", "oodatcaa.gates"),
    *("oodatcaa.importers", "oodatcaa.roles"),
    *("oodatcaa.app.agent", "oodatcaa.app.work", "oodatcaa.app.desk"),
    *("oodatcaa.domain.training", "oodatcaa.domain.qlora", "oodatcaa.domain.plan"),
    *("oodatcaa.domain.objective", "oodatcaa.views.plots", "oodatcaa.views.agent_plan"),
)
WITHOUT_CONFIG = ("oodatcaa.domain.evidence", "oodatcaa.kit.config")
"""What config.toml is made of; `status` does not read it."""
UNTIL_A_RECORD_IS_NEEDED = ("pydantic", "oodatcaa.domain.task", "oodatcaa.state", "oodatcaa.app")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("start-up")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "begin"]):
        subprocess.run([*git, *words], cwd=root, check=True)
    made = board(30).evolve(sprint=sprint())
    with QueueStore(root / ".oodatcaa" / "work") as store:
        store.transact(lambda old, _: Decision(made.evolve(revision=old.revision), None))
    return root


def loaded(project: Path, *words: str) -> set[str]:
    command = [sys.executable, "-X", "importtime", "-m", "oodatcaa", *words]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.findall(r"^import time:\s+\d+ \|\s+\d+ \|\s+([\w.]+)$", done.stderr, re.M)
    return set(found)


def among(modules: set[str], names: tuple[str, ...] | list[str]) -> set[str]:
    return {
        module
        for module in modules
        for name in names
        if module == name or module.startswith(name + ".")
    }


@pytest.mark.parametrize(
    "words", [("--help",), ("status",), ("status", "--json"), ("negotiate",)], ids=" ".join
)
def test_a_quick_command_loads_nothing_heavy(project: Path, words: tuple[str, ...]) -> None:
    for _ in range(2 if words == ("negotiate",) else 1):  # the first offers, the second does not
        modules = loaded(project, *words)
        assert {"typer", "oodatcaa.cli.main", "oodatcaa.errors"} <= modules, "nothing was measured"
        never = NEVER if words == ("negotiate",) else (*NEVER, *WITHOUT_CONFIG)
        assert among(modules, never) == set()


def test_help_loads_no_records(project: Path) -> None:
    modules = loaded(project, "--help")
    assert among(modules, list(UNTIL_A_RECORD_IS_NEEDED)) == set()
    assert among(loaded(project, "status"), ["pydantic"]), "the search finds nothing any more"
