"""Type commands of the real console script in real repositories."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(sys.executable).parent / "oodatcaa"
OBJECTIVE = """\
---
id: O-T1
title: A tiny model learns something
model: {model}
data: {data}
memory_limit: {limit}
backends: [mlx]
qlora:
  rank: 4
  alpha: 8
  num_layers: 2
  batch_size: 2
  max_seq_length: 128
  iters: {iters}
  learning_rate: 5e-3
  save_every: 4
  val_batches: 1
acceptance:
  - test_loss_drop >= 0.01
  - peak_memory <= {limit} critical
eval_examples: 6
prompt: Write add_3(x).
---

# A tiny model learns something
"""


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


def type_in(folder: Path, *words: str, **env: str) -> Answer:
    """`oodatcaa …` in `folder`, with no hub, no shared reservations and no traceback."""
    done = subprocess.run(
        [str(SCRIPT), *words],
        cwd=folder,
        env=environment(folder, **env),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    answer = Answer(done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in answer.text, answer.text
    return answer


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "OODATCAA_RESERVATIONS": str(folder.parent / "reservations"),
        "HF_HUB_OFFLINE": "1",
        **more,
    }


def complaint(answer: Answer, code: str, exit_code: int) -> str:
    """The error text, once it is one line with its code, a hint, and the documented exit code."""
    lines = answer.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, answer.text
    assert errors[0].endswith(f"[{code}]"), answer.text
    assert [line for line in lines if line.startswith("hint: ")], answer.text
    assert answer.code == exit_code, answer.text
    return answer.err


def git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def write_objective(root: Path, **values: object) -> None:
    given = {"limit": "4GB", "iters": 12, "model": "demo", "data": "demo", **values}
    (root / "OBJECTIVE.md").write_text(OBJECTIVE.format(**given), encoding="utf-8")


def new_project(root: Path, **values: object) -> Path:
    """A repository with an objective, set up and committed."""
    root.mkdir(parents=True, exist_ok=True)
    git(root, "init", "-q", "-b", "main")
    write_objective(root, **values)
    answer = type_in(root, "init", "--commit")
    assert answer.code == 0, answer.text
    return root
