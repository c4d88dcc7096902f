"""`[training]` of config.toml arrives where it is meant for: in the child and at its watch."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from oodatcaa.app.desk import ModelShelf, Workshop
from oodatcaa.app.project import open_project
from oodatcaa.kit.machine import guess_accelerator
from oodatcaa.training.backend import MlxBackend
from oodatcaa.training.children import ChildSettings, run_child
from typing_in import git, type_in


def configure(project: Path, text: str) -> None:
    path = project / ".oodatcaa" / "config.toml"
    head = path.read_text(encoding="utf-8").partition("[training]")[0]
    path.write_text(f"{head}[training]\n{text}\n", encoding="utf-8")
    git(project, "commit", "-qam", "configure")


def test_the_slow_path_and_the_interval_reach_the_children(project: Path) -> None:
    configure(project, "fast_cpu = false\nsample_interval_ms = 20")
    opened = open_project(project)
    backend = Workshop(opened).training(ModelShelf(print, opened.root))
    assert isinstance(backend, MlxBackend)
    assert backend.settings == ChildSettings(sample_interval_ms=20, fast_cpu=False)
    slow = json.loads(type_in(project, "estimate", "--json").out)
    configure(project, "fast_cpu = true")
    fast = json.loads(type_in(project, "estimate", "--json").out)
    assert slow["estimate"]["parts"] != fast["estimate"]["parts"]


def test_a_child_does_what_it_was_told(tmp_path: Path, tiny: tuple[Path, Path]) -> None:
    """Without the speed path a worker keeps MLX's own BLAS and the quantised products."""
    program = tmp_path / "look.py"
    program.write_text(
        "import json, os, sys\n"
        "from oodatcaa.training.mlx.blas import preload\n"
        "blas = preload()\n"
        "from oodatcaa.training.mlx.setup import load_base\n"
        "network, _ = load_base(sys.argv[1])\n"
        "layers = sorted({type(item).__name__ for item in network.modules()})\n"
        "print(json.dumps([blas is None, layers]))\n",
        encoding="utf-8",
    )
    seen = {}
    for fast in (True, False):
        log = tmp_path / f"{fast}.log"
        argv = [sys.executable, str(program), str(tiny[0])]
        settings = ChildSettings(sample_interval_ms=20, fast_cpu=fast)
        ended = run_child(argv, folder=tmp_path, log=log, limit=10**10, settings=settings)
        text = log.read_text(encoding="utf-8")
        assert ended.exit_code == 0, text
        seen[fast] = json.loads(text.splitlines()[-1])
    own_blas, layers = seen[False]
    assert own_blas
    assert "QuantizedLinear" in layers
    if guess_accelerator() == "cpu":
        assert "QuantizedLinear" not in seen[True][1]


@pytest.mark.parametrize(
    "said",
    ["", pytest.param("  cache_frozen: false\n  dense_weights: false\n", marks=pytest.mark.slow)],
    ids=["nothing said", "both forbidden"],
)
def test_auto_fit_measures_chooses_and_trains(project: Path, said: str) -> None:
    """Short examples, so packed rows are a candidate; more rows than examples, so is a cache."""
    path = project / "OBJECTIVE.md"
    text = re.sub(r"iters: \d+", "iters: 30", path.read_text())
    path.write_text(text.replace("qlora:\n", f"qlora:\n{said}"))
    git(project, "commit", "-qam", "more than once")
    answer = type_in(project, "train", "--auto-fit")
    assert answer.code == 0, answer.text
    measured = [line for line in answer.text.splitlines() if line.startswith("measuring ")]
    assert len(measured) == len(set(measured)) > (1 if said else 3)
    assert any("frozen blocks cached" in line for line in measured) is not bool(said)
    if guess_accelerator() == "cpu":
        assert any("dense weights" in line for line in measured) is not bool(said)
    assert any("1 x 1 accumulated, packed" in line for line in measured)
    assert "examples: fits" in answer.text
    assert "the fastest that fits" in answer.text
    assert json.loads(type_in(project, "runs", "--json").out)["runs"][-1]["status"] == "finished"


@pytest.mark.skipif(guess_accelerator() != "cpu", reason="they are anything on a CPU alone")
@pytest.mark.parametrize("asked", ["", "  dense_weights: false\n"])
def test_the_framework_plan_holds_dense_weights_unless_the_objective_forbids_it(
    project: Path, asked: str
) -> None:
    path = project / "OBJECTIVE.md"
    text = path.read_text(encoding="utf-8").replace("qlora:\n", f"qlora:\n{asked}")
    path.write_text(text, encoding="utf-8")
    if asked:
        git(project, "commit", "-qam", "say it")
    assert type_in(project, "sprint", "new").code == 0
    type_in(project, "agent", "planner", "--once")

    folder = project / ".oodatcaa/work/plans/T001"
    page = (folder / "AGENT_PLAN.md").read_text(encoding="utf-8")
    assert ("weights held as float32" in page) is (not asked)
    assert ("with dense_weights because" in page) is (not asked)
