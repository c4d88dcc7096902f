"""`kill -9` at random moments, `oodatcaa resume`, and the same bits at the end?

Tiny runs through the command line: the reference twice, then runs whose command, worker or both
are killed at a random moment of their life, again and again, until one of them finishes. Its
adapter must have the bytes of the reference's, and metrics.jsonl every step once. Prints Markdown;
`--write` puts it into docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from page import measured_with, write_section

from oodatcaa.domain.training import RunRecord, RunStatus
from oodatcaa.kit.process import is_alive
from oodatcaa.training.protocol import ADAPTER_FILE, ADAPTERS_DIR, METRICS_FILE
from oodatcaa.training.runs import CHILD_FILE, Owner, RunStore

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny_model import make_tiny_data, make_tiny_model

PATIENCE = 600.0
QLORA = {
    **{"rank": 4, "alpha": 8, "num_layers": 2, "batch_size": 2, "max_seq_length": 64},
    **{"learning_rate": 0.01, "schedule": "cosine", "warmup_steps": 2, "dropout": 0.2},
    **{"grad_accumulation_steps": 2, "grad_checkpoint": True, "steps_per_report": 3},
    **{"steps_per_eval": 25, "save_every": 10, "select_best": True},
}


@dataclass
class Tally:
    """What the kills did."""

    kills: Counter[str] = field(default_factory=Counter)
    resumed_at: list[int] = field(default_factory=list)
    finished: int = 0
    exact: int = 0
    whole_metrics: int = 0
    lost: list[str] = field(default_factory=list)


class Project:
    """A git repository with an objective for the tiny model; everything goes through the CLI."""

    def __init__(self, root: Path, iters: int) -> None:
        self.root = root / "project"
        self.root.mkdir()
        model = make_tiny_model(root / "model")
        data = make_tiny_data(root / "data", 48)
        subprocess.run(["git", "init", "-q", "-b", "main", str(self.root)], check=True)
        for name, value in (("user.name", "bench"), ("user.email", "bench@example.org")):
            subprocess.run(["git", "-C", str(self.root), "config", name, value], check=True)
        qlora = json.dumps({**QLORA, "iters": iters})
        (self.root / "OBJECTIVE.md").write_text(
            f"---\nid: O-001\ntitle: Survive\nmodel: {model}\ndata: {data}\n"
            f"memory_limit: 16GB\nbackends: [mlx]\nqlora: {qlora}\n"
            "acceptance:\n  - test_loss_drop >= 0.1\n---\n\n# Survive\n"
        )
        self.start("init", "--commit").wait(PATIENCE)
        self.store = RunStore(self.root / "models" / "runs")

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        log = (self.root.parent / "commands.log").open("ab")
        command = [sys.executable, "-m", "oodatcaa", *words]
        return subprocess.Popen(command, cwd=self.root, stdout=log, stderr=log)

    def runs(self) -> tuple[RunRecord, ...]:
        return self.store.list("mlx").runs if self.store.root.is_dir() else ()

    def worker(self, run: RunRecord) -> Owner | None:
        path = self.store.folder(run) / CHILD_FILE
        return Owner.model_validate_json(path.read_bytes()) if path.is_file() else None

    def result(self, run: RunRecord) -> tuple[str, list[Any]]:
        """(sha256 of the adapter, metrics without times and memory)."""
        folder = self.store.folder(run)
        data = (folder / ADAPTERS_DIR / ADAPTER_FILE).read_bytes()
        lines = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
        names = ("kind", "iteration", "loss", "learning_rate", "tokens")
        return hashlib.sha256(data).hexdigest(), [[m.get(n) for n in names] for m in lines]


def uninterrupted(project: Project) -> tuple[str, list[Any], float]:
    """The reference, and the seconds between its first and its last sign."""
    if code := project.start("train").wait(PATIENCE):
        raise SystemExit(f"the reference run ended with {code}; see {project.root.parent}")
    run = project.runs()[-1]
    assert run.finished_at is not None
    return *project.result(run), (run.finished_at - run.started_at).total_seconds()


def disturbed(
    project: Project, chance: random.Random, seconds: float, wanted: int, tally: Tally
) -> RunRecord:
    """One training from its start to its end, killed on the way as long as kills are `wanted`."""
    words = ["train"]
    while True:
        before = len(project.runs())
        command = project.start(*words)
        run = _new_run(project, before, command)
        if sum(tally.kills.values()) < wanted:
            time.sleep(chance.uniform(0, seconds))
            victim = chance.choice(("command", "worker", "both"))
            if command.poll() is None and _kill(project, run, command, victim):
                tally.kills[victim] += 1
        command.wait(PATIENCE)
        _gone(project, run)
        project.store.recover()
        run = project.store.read("mlx", run.run_id)
        if run.status is RunStatus.FINISHED:
            return run
        found = project.store.last_checkpoint(run)
        tally.resumed_at.append(found.iteration if found else 0)
        done = sum(tally.kills.values())
        print(f"kill {done} of {wanted}: from {tally.resumed_at[-1]}", file=sys.stderr, flush=True)
        words = ["resume", run.run_id]


def _new_run(project: Project, before: int, command: subprocess.Popen[bytes]) -> RunRecord:
    deadline = time.monotonic() + PATIENCE
    while len(project.runs()) <= before:
        if command.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"no run began; see {project.root.parent / 'commands.log'}")
        time.sleep(0.02)
    return project.runs()[-1]


def _kill(project: Project, run: RunRecord, command: subprocess.Popen[bytes], victim: str) -> bool:
    worker = project.worker(run)
    if victim != "command":
        if worker is None or not is_alive(worker.pid, worker.create_time):
            return False
        for pid in (*_children(worker.pid), worker.pid):
            _signal(pid)
    if victim != "worker":
        command.kill()
    return True


def _children(pid: int) -> list[int]:
    listing = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in listing.read_text().split()] if listing.exists() else []


def _signal(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _gone(project: Project, run: RunRecord) -> None:
    """A killed command's worker is ended by its supervisor."""
    deadline = time.monotonic() + PATIENCE
    while (worker := project.worker(run)) and is_alive(worker.pid, worker.create_time):
        if time.monotonic() > deadline:
            raise SystemExit(f"the worker {worker.pid} outlived its command")
        time.sleep(0.05)


def measure(kills: int, iters: int, seed: int, place: Path) -> tuple[bool, float, Tally]:
    project = Project(place, iters)
    sha, metrics, seconds = uninterrupted(project)
    again, metrics_again, _ = uninterrupted(project)
    same = (sha, metrics) == (again, metrics_again)
    tally, chance = Tally(), random.Random(seed)
    while sum(tally.kills.values()) < kills:
        run = disturbed(project, chance, seconds, kills, tally)
        tally.finished += 1
        found, lines = project.result(run)
        tally.exact += found == sha
        tally.whole_metrics += lines == metrics
        if (found, lines) != (sha, metrics):
            tally.lost.append(run.run_id)
    return same, seconds, tally


def section(same: bool, seconds: float, tally: Tally, iters: int, seed: int) -> str:
    killed = sum(tally.kills.values())
    by_victim = ", ".join(f"{name} {count}" for name, count in sorted(tally.kills.items()))
    points = ", ".join(map(str, tally.resumed_at))
    rows = [
        ("two uninterrupted runs agree bit for bit", "yes" if same else "NO"),
        ("kills survived", f"{killed} of {killed} ({by_victim})"),
        ("went on after iteration (0 = from the start)", points),
        ("trainings that finished after their kills", str(tally.finished)),
        ("final adapters with the reference's bytes", f"{tally.exact} of {tally.finished}"),
        ("metrics.jsonl with every step once", f"{tally.whole_metrics} of {tally.finished}"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    stamp = measured_with("make bench-resume", ("mlx", "mlx-lm"))
    return (
        f"## Exact resume\n\n{stamp}\n\n"
        f"Tiny model, {iters} iterations with dropout, a cosine schedule with warmup, accumulation "
        "over two batches, gradient checkpointing and the best checkpoint selected; a checkpoint "
        f"every {QLORA['save_every']} iterations; one run takes {seconds:.0f} s. Each process is "
        f"killed (SIGKILL) at a uniformly random moment of a run's life, seed {seed}, then "
        "`oodatcaa resume`.\n\n"
        f"| | |\n| --- | --- |\n{table}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--iters", type=int, default=120)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="oodatcaa-resume-") as made:
        same, seconds, tally = measure(given.kills, given.iters, given.seed, Path(made))
    body = section(same, seconds, tally, given.iters, given.seed)
    print(body)
    print(
        f"kills survived: {sum(tally.kills.values())}, bit-exact resumes: "
        f"{tally.exact} of {tally.finished}"
    )
    if given.write:
        write_section("resume", body)
    if not same or tally.exact != tally.finished or tally.whole_metrics != tally.finished:
        raise SystemExit(f"not exact: {tally.lost}")


if __name__ == "__main__":
    main()
