"""Imported plans, run to the end by the crew: scripted agents write the code, our checks decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agent_making import script
from crew_projects import board, command, git, make_project, work
from oodatcaa.app.project import Project
from oodatcaa.domain.evidence import Evidence, Verdict

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

PLANS = Path(__file__).parents[1] / "importers" / "fixtures" / "plans"
STORAGE = """\
from datetime import datetime
from pathlib import Path


def create_run_dir(base_dir: Path) -> Path:
    run_dir = base_dir / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    run_dir.mkdir(parents=True, exist_ok=False)
    return run_dir
"""
STORAGE_TEST = """\
from training.run_storage import create_run_dir


def test_create_run_dir_creates_expected_structure(tmp_path):
    assert create_run_dir(tmp_path).name
"""
TRAIN = """\
import json
from pathlib import Path

from training.run_storage import create_run_dir


def prepare_run_paths(config, runs_root: Path):
    path = create_run_dir(runs_root) / "run.json"
    path.write_text(json.dumps(config))
    return path
"""
TRAIN_TEST = """\
from training import train_mlx


def test_prepare_run_paths_writes_metadata(tmp_path):
    assert train_mlx.prepare_run_paths({}, tmp_path).exists()
"""
LATEST = """

def update_latest_symlink(runs_root: Path, run_dir: Path) -> None:
    latest = runs_root / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(run_dir, target_is_directory=True)
"""
LATEST_TEST = """

def test_update_latest_symlink(tmp_path):
    (tmp_path / "run").mkdir()
    train_mlx.update_latest_symlink(tmp_path, tmp_path / "run")
    assert (tmp_path / "latest").is_symlink()
"""
DOCS = ("docs/SETUP.md", "docs/TASKS.md", "docs/COMPRESSION_LAYER_IMPLEMENTATION_PLAN.md")
BASE = {
    "pyproject.toml": '[tool.pytest.ini_options]\npythonpath = ["src"]\n',
    "src/training/__init__.py": '"""Training."""\n',
    "src/training/train_mlx.py": '"""Trains."""\n',
    "scripts/train_local.py": '"""Trains here."""\n',
    **dict.fromkeys(DOCS, "# Notes\n"),
}
TURNS: list[list[dict[str, Any]]] = [
    [{"write": "tests/test_run_storage.py", "text": STORAGE_TEST}, {"done": "written"}],
    [{"write": "src/training/run_storage.py", "text": STORAGE}, {"done": "written"}],
    [{"write": "tests/test_train_mlx_runs.py", "text": TRAIN_TEST}, {"done": "written"}],
    [{"write": "src/training/train_mlx.py", "text": TRAIN}, {"done": "written"}],
    [{"append": "tests/test_train_mlx_runs.py", "text": LATEST_TEST}, {"done": "written"}],
    [{"append": "src/training/train_mlx.py", "text": LATEST}, {"done": "written"}],
    *([{"append": path, "text": "Runs have folders.\n"}, {"done": "written"}] for path in DOCS),
]


def repository(tmp_path: Path, turns: list[list[dict[str, Any]]]) -> Path:
    """A project whose own story is cancelled: only what is imported is left to do."""
    builder = {"role": "builder", "script": script(tmp_path / "builder.json", *turns)}
    root = make_project(tmp_path, {"builder-s": builder})
    for name, text in BASE.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    git(root, "add", "-A")
    git(root, "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "base")
    command(root, "cancel", "T001", "--why", "imported plans only")
    return root


def seen(root: Path, story: str) -> dict[str, Evidence]:
    return {item.gate.id: item for item in Project(root).evidence.of_story(story)}


def test_a_superpowers_plan_fails_before_and_passes_after_its_code(tmp_path: Path) -> None:
    root = repository(tmp_path, TURNS)
    command(root, "import", str(PLANS / "run_storage.superpowers.md"))
    command(root, "approve", "T002", "T003", "T004", "--why", "read them")
    outcome = work(root, rounds=30)
    rows = board(root)
    assert outcome == "done", rows
    for story in ("T002", "T003", "T004"):
        evidence = seen(root, story)
        red, green = evidence["R2"], evidence["V4"]
        assert red.verdict is Verdict.PASSED
        assert red.exit_code not in (0, None)
        assert (green.verdict, green.exit_code) == (Verdict.PASSED, 0)
        assert red.commit != green.commit
        assert "warning: its output does not say" in red.detail  # an ImportError, no NameError
    assert "update_latest_symlink" in git(root, "show", "main:src/training/train_mlx.py")


TYPES = '''\
from dataclasses import dataclass


@dataclass
class AdapterInfo:
    """Information about a loaded LoRA adapter."""

    adapter_path: str
    base_model: str | None = None
    description: str | None = None
'''
POOL = """\
from dataclasses import dataclass
from typing import Any

from mlx_manager.mlx_server.models.types import AdapterInfo


@dataclass
class LoadedModel:
    model_id: str
    model: Any
    tokenizer: Any
    adapter_path: str | None = None
    adapter_info: AdapterInfo | None = None
"""
MANAGER = """\
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_manager.mlx_server.models.types import AdapterInfo


@dataclass
class LoadedModel:
    model_id: str
    model: Any
    tokenizer: Any
    adapter_path: str | None = None
    adapter_info: AdapterInfo | None = None


def load(model_id: str, adapter_path: str) -> tuple[Any, Any]:
    return model_id, adapter_path


class ModelPoolManager:
    def __init__(self) -> None:
        self._models: dict[str, LoadedModel] = {}

    def _validate_adapter_path(self, adapter_path: str) -> AdapterInfo:
        folder = Path(adapter_path)
        if not folder.is_dir():
            raise ValueError(f"{adapter_path} is no directory")
        config = json.loads((folder / "adapter_config.json").read_text())
        return AdapterInfo(adapter_path, base_model=config.get("model"))

    def get_model_with_adapter(self, model_id: str, adapter_path: str) -> LoadedModel:
        info = self._validate_adapter_path(adapter_path)
        key = f"{model_id}::{adapter_path}"
        if key not in self._models:
            model, tokenizer = load(model_id, adapter_path=adapter_path)
            loaded = LoadedModel(model_id, model, tokenizer, adapter_path, info)
            self._models[key] = loaded
        return self._models[key]
"""
MODELS = "backend/mlx_manager/mlx_server/models"
PACKAGES = ("backend/mlx_manager", "backend/mlx_manager/mlx_server", MODELS)


def test_a_gsd_plan_holds_its_must_haves_at_the_merged_commit(tmp_path: Path) -> None:
    types = {"write": f"{MODELS}/types.py", "text": TYPES}
    first = {"write": f"{MODELS}/pool.py", "text": POOL}
    full = {"write": f"{MODELS}/pool.py", "text": MANAGER}
    done = {"done": "all tests pass"}
    root = repository(tmp_path, [[types, first, done], [full, done], [done]])
    for package in PACKAGES:
        place = root / package / "__init__.py"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text('"""Models."""\n', encoding="utf-8")
    git(root, "add", "-A")
    git(root, "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "backend")
    plan = str(PLANS / "adapter_pool.gsd.md")
    home = "/Users/atomasini/Development/mlx-manager/backend=backend"
    command(root, "import", plan, "--map", home, "--assume-done", "14-01")
    command(root, "approve", "T002", "--why", "read them")
    assert work(root, rounds=20) == "needs_human", board(root)
    # The plan's truths name no command: a person decides each before the target moves.
    story = Project(root).board().story_by_id["T002"]
    assert "GT1" in story.reason + str(story.failure)
    for number in range(1, 5):
        command(root, "waive", "T002", f"GT{number}", "--why", "I looked at it", "--hours", "24")
    command(root, "approve", "T002", "--why", "it holds")
    assert work(root, rounds=20) == "done", board(root)
    evidence = seen(root, "T002")
    integration = Project(root).board().story_by_id["T002"].integration
    assert integration is not None
    for gate in ("GA1", "GA2", "GL1"):
        assert evidence[gate].verdict is Verdict.PASSED
        assert evidence[gate].commit == integration.merge_commit
