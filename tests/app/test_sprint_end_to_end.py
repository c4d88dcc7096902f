"""A whole sprint on a tiny random model: real git, real processes, real training."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_model import make_tiny_data, make_tiny_model

OBJECTIVE = """\
---
id: O-T1
title: A tiny model learns something
model: {model}
data: {data}
memory_limit: 4GB
backends: [mlx]
qlora:
  rank: 4
  alpha: 8
  num_layers: 2
  batch_size: 2
  max_seq_length: 128
  iters: 12
  learning_rate: 5e-3
  save_every: 4
  val_batches: 1
acceptance:
  - test_loss_drop >= 0.01
  - peak_memory <= 4GB critical
eval_examples: 6
---

# A tiny model learns something
"""


def command(folder: Path, *words: str, expect: int = 0) -> str:
    """Type `oodatcaa …` in `folder`; its output."""
    done = subprocess.run(
        [sys.executable, "-m", "oodatcaa", *words],
        cwd=folder,
        env={**os.environ, "OODATCAA_RESERVATIONS": str(folder.parent / "reservations")},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == expect, done.stdout[-3000:] + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=folder, capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    model = make_tiny_model(tmp_path / "model")
    data = tmp_path / "data"
    make_tiny_data(data)
    objective = OBJECTIVE.format(model=model, data=data)
    (root / "OBJECTIVE.md").write_text(objective, encoding="utf-8")
    command(root, "init", "--commit")
    return root


def test_an_objective_goes_in_and_a_merged_adapter_comes_out(project: Path) -> None:
    assert "no sprint" in command(project, "negotiate")
    command(project, "sprint", "new")
    output = command(project, "run")
    assert "the sprint is done" in output
    status = json.loads(command(project, "status", "--json"))
    stories = [row for row in status["tasks"] if "-" not in row["id"]]
    assert [row["status"] for row in stories] == ["done"] * 5
    tags = git(project, "tag").split()
    assert [f"T00{number}-complete" for number in range(1, 6)] == tags
    card = (project / "docs/training/MODEL_CARD.md").read_text(encoding="utf-8")
    assert "base_model" in card
    assert git(project, "status", "--porcelain") == ""
    tracked = git(project, "ls-files").split("\n")
    assert not [path for path in tracked if path.endswith(".safetensors")]
    assert (project / "models/runs/mlx/latest/adapters/adapters.safetensors").exists()
    for said in ("test loss", "predicted", "wall time", "SPRINT_REPORT.md"):
        assert said in output
    pages = list((project / ".oodatcaa/history").rglob("*.md"))
    assert len(pages) > 15
    assert [(page.name, target) for page in pages for target in dead_links(page)] == []


def dead_links(page: Path) -> list[str]:
    """Relative targets of a page that lead nowhere from where it lies."""
    found = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    return [
        target for target in found if "://" not in target and not (page.parent / target).exists()
    ]
