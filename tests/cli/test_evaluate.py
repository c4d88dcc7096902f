"""`oodatcaa evaluate`: what runs are worth, against their base, against others and at tasks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from oodatcaa.app.project import Project, open_project
from oodatcaa.domain.training import TrainSpec
from oodatcaa.training.protocol import ADAPTER_CONFIG_FILE, ADAPTER_FILE, ADAPTERS_DIR
from oodatcaa.training.runs import RunStore
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


def sibling(
    project: Project, name: str, seed: int, params: Mapping[str, object] = {}, **changes: object
) -> str:
    """Another finished run beside `name`, of another seed, whose adapter changes nothing."""
    store = RunStore(project.models / "runs")
    record = store.find(name)
    spec = TrainSpec.model_validate_json((store.folder(record) / "spec.json").read_text("utf-8"))
    chosen = spec.params.evolve(seed=seed, **params)
    made = store.create(spec.evolve(params=chosen))
    source, target = store.folder(record) / ADAPTERS_DIR, store.folder(made) / ADAPTERS_DIR
    target.mkdir()
    shutil.copy(source / ADAPTER_CONFIG_FILE, target)
    tensors = load_file(source / ADAPTER_FILE)
    save_file({key: 0 * tensor for key, tensor in tensors.items()}, target / ADAPTER_FILE)
    own = {"run_id": made.run_id, "started_at": made.started_at, "params": chosen}
    store.finish(record.evolve(**{**own, **changes}))
    return made.run_id


def test_trained_seeds_are_better_than_adapters_that_do_nothing(
    trained: tuple[Path, str, str],
) -> None:
    project, first, second = trained
    idle = [sibling(open_project(project), first, seed) for seed in (11, 12)]
    words = ["evaluate", first, second, "--against", idle[0], "--against", idle[1]]
    answer = type_in(project, *words)
    assert answer.code == 0, answer.text
    blocks = {
        block.partition(":")[0]: [line.split(", perplexity")[0].split() for line in lines]
        for block, *lines in (part.splitlines() for part in answer.out.split("\n\n"))
    }
    for name in idle:
        assert blocks[name][0] == ["base", "loss", blocks[first][0][2]], "one base for all"
        assert blocks[name][1] == ["adapter", "loss", blocks[first][0][2]]
    assert f"{first}: 8 examples" in answer.out
    against = f"{first}, {second} against {idle[0]}, {idle[1]}"
    assert f"{against}: better (both intervals are above 0)" in answer.out
    assert "95 % intervals: over seeds [" in answer.out


def test_a_verdict_needs_runs_that_can_be_compared(trained: tuple[Path, str, str]) -> None:
    project, first, second = trained
    opened = open_project(project)
    other = sibling(
        opened, first, 2, params={"rank": 8, "max_seq_length": 96}, model_sha256="b" * 64
    )
    text = type_in(project, "evaluate", first, "--against", second, "--against", other).text
    assert "[evaluate.not_comparable]" in text
    for problem in (
        "the base models differ",
        "max_seq_length, mask_prompt or quantize_bits differ",
        "seeds are repeated: 2, 2",
        f"{second}, {other} differ in more than the seed",
    ):
        assert f"- {problem}" in text, text
    elsewhere = sibling(opened, first, 3, data_sha256="c" * 64)
    text = type_in(project, "evaluate", first, "--against", elsewhere).text
    assert "[evaluate.different_data]" in text


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
