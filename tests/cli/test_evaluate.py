"""`oodatcaa evaluate`: what runs are worth, against their base, against others and at tasks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from typing_in import git, new_project, type_in


def train(project: Path, seed: int) -> str:
    path = project / "OBJECTIVE.md"
    lines = path.read_text(encoding="utf-8").splitlines()
    place = next(n for n, line in enumerate(lines) if line.strip().startswith("rank:"))
    kept = [line for line in lines if not line.strip().startswith("seed:")]
    kept.insert(place, f"  seed: {seed}")
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    git(project, "commit", "-qam", f"seed {seed}")
    answer = type_in(project, "train")
    assert answer.code == 0, answer.text
    found = json.loads(type_in(project, "runs", "--json").out)["runs"]
    return str(found[-1]["run_id"])


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, tiny: tuple[Path, Path]
) -> tuple[Path, str, str]:
    project = new_project(
        tmp_path_factory.mktemp("evaluate") / "project", model=tiny[0], data=tiny[1]
    )
    return project, train(project, 1), train(project, 2)


@pytest.mark.slow
def test_runs_against_base_others_and_tasks(trained: tuple[Path, str, str], tmp_path: Path) -> None:
    project, first, second = trained
    tasks = tmp_path / "tasks.jsonl"
    lines = [
        {"prompt": "Write nothing that parses.", "test": "assert clamp(3, 1, 2) == 2"},
        {"prompt": "Say it.", "expected": "what no random model says"},
    ]
    tasks.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    words = ["evaluate", first, "--against", second, "--tasks", str(tasks), "--max-tokens", "8"]
    answer = type_in(project, *words, "--json")
    assert answer.code == 0, answer.text
    found = json.loads(answer.out)
    (run,), (other,) = found["runs"], found["against"]
    losses = run["losses"]
    assert losses["examples"] == len(losses["per_example_base"]) >= 2
    assert losses["drop"] == pytest.approx(losses["base_loss"] - losses["adapter_loss"])
    assert losses["per_example_base"] == other["losses"]["per_example_base"], "one base for both"
    assert losses["per_example_adapter"] != other["losses"]["per_example_adapter"]
    none = {"exact_match": {"passed": 0, "total": 1}, "pass_at_1": {"passed": 0, "total": 1}}
    assert (run["tasks"], run["base_tasks"]) == (none, none)
    twice = type_in(project, "evaluate", first, first, "--against", second)
    assert "[evaluate.repeated]" in twice.text
    assert found["verdict"]["verdict"] == "inconclusive"
    assert "one seed" in found["verdict"]["reason"]
    text = type_in(project, "evaluate", first, "--examples", "2").out
    assert f"{first}: 2 examples" in text
    assert "95 % interval [" in text


def test_bad_input_is_told_at_once(trained: tuple[Path, str, str], tmp_path: Path) -> None:
    project, first, _ = trained
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text(
        '{"prompt": ""}\nnot json\n{"prompt": "p", "expected": "a", "test": "b"}\n', "utf-8"
    )
    answer = type_in(project, "evaluate", first, "--tasks", str(tasks))
    assert answer.code != 0
    for said in ("[tasks.invalid]", "line 1: prompt", "line 2: no JSON", "line 3: the task"):
        assert said in answer.text, answer.text
    assert "[run.unknown]" in type_in(project, "evaluate", "2026-01-01_00-00-00").text
    missing = type_in(project, "evaluate", first, "--tasks", str(tmp_path / "none"))
    assert "[tasks.unreadable]" in missing.text
