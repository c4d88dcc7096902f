"""The planner of a project where two backends work tries both, and plans with what it measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from oodatcaa.app.by_hand import train_objective
from oodatcaa.app.desk import Workshop
from oodatcaa.app.project import Project
from oodatcaa.app.templates import objective_text
from oodatcaa.domain.training import RunStatus
from oodatcaa.roles.planning import make_plan
from real_project import make_project
from tiny_model import make_tiny_data, make_tiny_model

pytest.importorskip("torch")
pytest.importorskip("peft")


def test_the_framework_plan_compares_what_both_backends_measured(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "tiny")
    project: Project = make_project(tmp_path / "project", str(model))
    asked = project.objective()
    qlora = asked.qlora.evolve(num_layers=2)
    objective = asked.evolve(backends=("axolotl", "mlx", "hf"), qlora=qlora)
    desk = Workshop(project).desk("planner-A", objective)
    board = project.store.read()
    plan = make_plan(desk, board, next(s for s in board.stories if s.id == "T001"))
    facts = {one.key: one.facts for one in plan.alternatives}
    assert {facts[name]["speed"].source for name in ("mlx", "hf")} == {"measured"}
    assert all("tokens/s trained" in facts[name]["speed"].value for name in ("mlx", "hf"))
    assert {facts[name]["loads"].score for name in ("mlx", "hf")} == {1.0}
    assert {facts[name]["memory"].score is not None for name in ("mlx", "hf")} == {True}
    assert facts["axolotl"]["speed"].source == "not available"
    totals = plan.decision.totals
    assert plan.backend == max(("mlx", "hf"), key=lambda name: totals[name])
    faster = max(("mlx", "hf"), key=lambda name: facts[name]["speed"].score or 0.0)
    assert facts[faster]["speed"].score == 1.0
    project.store.close()


@pytest.mark.slow
def test_auto_fit_measures_both_backends_and_trains_with_the_fastest(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "tiny")
    data = make_tiny_data(tmp_path / "data")
    project = make_project(tmp_path / "project", str(model))
    asked = objective_text(
        model=str(model), data=str(data), batch_size=1, max_seq_length=64, iters=4, save_every=2
    )
    (project.root / "OBJECTIVE.md").write_text(
        asked.replace("num_layers: 8", "num_layers: 2").replace(
            "qlora:\n", "backends: [hf, mlx]\nqlora:\n", 1
        ),
        encoding="utf-8",
    )
    said: list[str] = []
    run = train_objective(project, said.append, lambda _: None, auto_fit=True)
    assert run.status is RunStatus.FINISHED, run.failure
    chosen = next(line for line in said if line.startswith("chosen: "))
    assert chosen.startswith(f"chosen: {run.backend}, 1 x ")
    speeds = {
        name: min(
            float(line.partition(" s a step")[0].rpartition(" ")[2])
            for line in said
            if line.startswith(f"{name}, ") and line.endswith(" s a step: fits")
        )
        for name in ("mlx", "hf")
    }
    assert speeds[run.backend] == min(speeds.values())
    project.store.close()
