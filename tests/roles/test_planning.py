"""What the planner of a real project makes of an objective and the facts that are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from oodatcaa.app.desk import Workshop
from oodatcaa.domain.task import StoryKind
from oodatcaa.roles.builder import records
from oodatcaa.roles.planning import make_plan
from planner_facts import dataset
from real_project import make_project
from tiny_model import make_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(
    ("asked", "cached"), [({}, True), ({"cache_frozen": False}, False), ({"rank": 4}, True)]
)
def test_a_plan_caches_frozen_blocks_unless_the_objective_forbids_it(
    tmp_path: Path, tiny: Path, asked: dict[str, object], cached: bool
) -> None:
    project = make_project(tmp_path / "project", str(tiny))
    objective = project.objective()
    written = {"iters": 600, "batch_size": 4, "num_layers": 1, **asked}
    objective = objective.evolve(qlora=written)
    desk = Workshop(project).desk("planner-A", objective)
    board = project.store.read()
    by_kind = {story.kind: story for story in board.stories}
    facts = records.DatasetFacts(dataset=dataset())
    desk.facts.put(by_kind[StoryKind.DATA].id, records.DATASET, facts)
    plan = make_plan(desk, board, by_kind[StoryKind.TRAIN])
    assert plan.params.cache_frozen is cached
    project.store.close()
