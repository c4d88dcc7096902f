"""The crew's data task and its judge examine the data as a training will see them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import pytest

from crew_boards import plan_for
from oodatcaa.app.by_hand import objective_spec
from oodatcaa.app.desk import ModelShelf, StoryWorkspace, Workshop
from oodatcaa.app.metrics import ArtefactMetrics
from oodatcaa.app.preflight import preflight
from oodatcaa.app.project import Project, open_project
from oodatcaa.app.sprints import new_sprint
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.qlora import QLoRA
from oodatcaa.domain.task import StoryKind
from oodatcaa.errors import OodatcaaError
from oodatcaa.gates.ports import GateRequest
from oodatcaa.roles.builder.bench import Bench
from oodatcaa.roles.builder.data import build_data, validate_data
from oodatcaa.training import secrets
from oodatcaa.training.data_report import SCANNED
from oodatcaa.training.runs import RunStore
from tiny_model import make_tiny_data, make_tiny_model
from typing_in import new_project
from wrong_mask import wrong_mask

WRONG = "the template writes the prompt differently"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A sprint over data with one example twice."""
    monkeypatch.setenv("OODATCAA_RESERVATIONS", str(tmp_path / "reservations"))
    data = make_tiny_data(tmp_path / "data", 4)
    lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    (data / "train.jsonl").write_text("\n".join([*lines, lines[0]]) + "\n", encoding="utf-8")
    model = make_tiny_model(tmp_path / "model")
    found = open_project(new_project(tmp_path / "project", model=model, data=data))
    new_sprint(found)
    return found


def bench(project: Project, said: list[str], model: Path) -> Bench:
    story = next(one for one in project.board().stories if one.kind is StoryKind.DATA)
    workshop = Workshop(project)
    desk = workshop.desk("builder-1", project.objective())
    desk = dataclasses.replace(desk, say=said.append)
    params = QLoRA(max_seq_length=128)
    plan = plan_for(story).evolve(kind=StoryKind.DATA, model=str(model), params=params)
    workspace = StoryWorkspace(project, story.id, story.branch, project.repo.head().sha or "")
    return Bench(desk, plan, story, cast(Any, None), plan.steps[0], workspace)


def bad_lines(at: Bench, plan: Plan, project: Project) -> float | None:
    request = GateRequest(
        story=at.story.id, task="T", attempt=1, commit="c0", gates=(), variables={}, target="main"
    )
    judge = ArtefactMetrics(at.desk, plan, project.repo.file_at, RunStore(project.work / "probes"))
    found = judge.measure("bad_lines", request)
    assert found is not None
    return found.value


def test_a_template_that_was_changed_since_the_evening_fails_the_task_and_the_gate(
    project: Project, tmp_path: Path
) -> None:
    broken = wrong_mask(tmp_path / "model", tmp_path / "broken")
    with pytest.raises(OodatcaaError) as caught:
        build_data(bench(project, [], broken))
    assert caught.value.code == "data.invalid"
    assert [line.partition(": ")[0] for line in caught.value.details if WRONG in line] == [
        f"{split}.jsonl:1" for split in ("train", "valid", "test")
    ]

    said: list[str] = []
    good = bench(project, said, tmp_path / "model")
    build_data(good)
    twice = "warning: train.jsonl:5: the same example as in line 1"
    assert twice in said
    outcome = validate_data(good)
    assert outcome.failure is None
    assert twice in outcome.facts
    assert bad_lines(good, good.plan, project) == 0
    assert bad_lines(good, good.plan.evolve(model=str(broken)), project) == 3


@pytest.mark.skipif(not secrets.available(), reason="detect-secrets is not installed")
def test_the_search_for_secrets_ends_and_says_where(project: Project, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "x " * SCANNED}, {"role": "assistant", "content": "y"}]
    with (tmp_path / "data" / "train.jsonl").open("a", encoding="utf-8") as file:
        for more in ("", "z"):
            turns[1] = {"role": "assistant", "content": f"y{more}"}
            file.write(json.dumps({"messages": turns}) + "\n")
    at = bench(project, [], tmp_path / "model")
    build_data(at)
    outcome = validate_data(at)
    assert outcome.failure is None
    assert any("for secrets up to line 6 only" in fact for fact in outcome.facts), outcome.facts


def test_a_home_folder_is_one_place_for_all(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = project.root / "OBJECTIVE.md"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(f"data: {tmp_path / 'data'}", "data: ~/data"), encoding="utf-8")
    objective = project.objective()
    assert objective.data == "~/data"
    preflight(project, objective)
    shelf = ModelShelf(lambda _: None, project.root)
    assert objective_spec(project, objective, shelf).data_dir == str(tmp_path / "data")
    assert build_data(bench(project, [], tmp_path / "model")).artefacts


def test_made_data_is_examined_with_the_model_too(project: Project, tmp_path: Path) -> None:
    """The standard library's pairs can be masked wrongly as well."""
    path = project.root / "OBJECTIVE.md"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(f"data: {tmp_path / 'data'}", "data: demo"), encoding="utf-8")
    assert project.objective().data == "demo"
    with pytest.raises(OodatcaaError, match=WRONG):
        build_data(bench(project, [], wrong_mask(tmp_path / "model", tmp_path / "broken")))
