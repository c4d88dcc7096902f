"""Data is examined in full at every door that leads to a training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from oodatcaa.errors import EXIT_FAILURE
from oodatcaa.training import secrets
from tiny_model import make_tiny_data
from typing_in import complaint, git, new_project, type_in
from wrong_mask import wrong_mask


def append(path: Path, *rows: tuple[str, str]) -> None:
    with path.open("a", encoding="utf-8") as file:
        for question, answer in rows:
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")


def change(project: Path, old: str, new: str) -> None:
    path = project / "OBJECTIVE.md"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    git(project, "commit", "-qam", "another objective")


def test_a_mask_that_would_be_wrong_stops_every_door_with_all_findings(
    tmp_path: Path, tiny: tuple[Path, Path]
) -> None:
    data = make_tiny_data(tmp_path / "data", 4)
    append(data / "valid.jsonl", ("q", " "))
    project = new_project(
        tmp_path / "project", model=wrong_mask(tiny[0], tmp_path / "model"), data=data
    )
    for words in (("train",), ("sprint", "new")):
        text = complaint(type_in(project, *words), "data.invalid", EXIT_FAILURE)
        assert "4 problems" in text
        assert "valid.jsonl:5: the last assistant turn is empty" in text
        for place in ("train.jsonl:1", "valid.jsonl:1", "test.jsonl:1"):
            assert f"{place}: the template writes the prompt differently" in text, text
        assert text.count("(lines: 4)") == 3, text
    assert json.loads(type_in(project, "runs", "--json").out)["runs"] == []
    assert "no sprint" in type_in(project, "status").out

    shutil.copy(tiny[1] / "valid.jsonl", data / "valid.jsonl")
    change(project, "  val_batches: 1\n", "  val_batches: 1\n  mask_prompt: false\n")
    answer = type_in(project, "sprint", "new")
    assert answer.code == 0, answer.text


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Data that can be trained on, with something in it for a person to look at."""
    data = make_tiny_data(tmp_path / "odd", 4)
    (data / "card.json").write_text("{}", encoding="utf-8")  # a name of our own, in their folder
    first = json.loads((data / "train.jsonl").read_text(encoding="utf-8").splitlines()[0])
    append(
        data / "train.jsonl",
        (first["messages"][0]["content"], first["messages"][1]["content"]),
        ("q", "word " * 200),
        ("my key", "aws_access_key_id = 'AKIA" + "QYLPMN5HFIQR7XYA'"),
    )
    return data


def test_what_is_odd_is_said_and_stops_nothing(
    tmp_path: Path, tiny: tuple[Path, Path], odd: Path
) -> None:
    project = new_project(tmp_path / "project", model=tiny[0], data=odd, iters=1)
    for words in (("train",), ("sprint", "new")):
        answer = type_in(project, *words)
        assert answer.code == 0, answer.text
        said = [line for line in answer.text.splitlines() if "warning: train.jsonl:" in line]
        assert "train.jsonl:5: the same example as in line 1" in said[0]
        assert "train.jsonl:6: " in said[1]
        assert "are cut off" in said[1]
        if secrets.available():
            assert "train.jsonl:7: looks like a secret (AWS Access Key)" in said[2]
            assert len(said) == 3
        assert "QYLPMN5HFIQR7XYA" not in answer.text
