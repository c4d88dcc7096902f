"""evaluate: runs against their base, against other runs, and at tasks."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from oodatcaa.cli.show import as_json, following, say

if TYPE_CHECKING:
    from oodatcaa.app.evaluating import Evaluation, RunEvaluation, TaskScores
    from oodatcaa.training.generation_checks import Score


def register(app: typer.Typer) -> None:
    app.command("evaluate")(evaluate)


def evaluate(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="run ids, `oodatcaa runs`")],
    against: Annotated[
        list[str] | None,
        typer.Option(help="a run to beat; several, with other seeds, for a verdict"),
    ] = None,
    split: Annotated[Literal["valid", "test"], typer.Option(help="the held-out split")] = "test",
    examples: Annotated[
        int | None, typer.Option(min=2, help="only the first so many; all by default")
    ] = None,
    tasks: Annotated[
        Path | None,
        typer.Option(help="JSONL: a prompt with `expected`, or with `test` (Python that asserts)"),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="of one answer to a task")] = 256,
    json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Losses of base and adapter, tasks, and whether runs are better than others."""
    from oodatcaa.app.evaluating import evaluate_runs
    from oodatcaa.app.project import open_project

    found = evaluate_runs(
        open_project(),
        runs,
        against=against or (),
        split=split,
        examples=examples,
        tasks=tasks,
        max_tokens=max_tokens,
        say=lambda text: print(text, file=sys.stderr),
    )
    if json:
        as_json(found)
        return
    say(evaluation_text(found))
    following("oodatcaa models list")


def evaluation_text(found: Evaluation) -> str:
    """What people read: a block for each run, and the verdict."""
    lines: list[str] = []
    for one in (*found.runs, *found.against):
        lines += [*_run(one), ""]
    if found.verdict is not None:
        ours = ", ".join(one.run_id for one in found.runs)
        theirs = ", ".join(one.run_id for one in found.against)
        verdict = found.verdict
        lines.append(f"{ours} against {theirs}: {verdict.verdict.value} ({verdict.reason})")
        lines.append(
            f"  improvement {verdict.improvement:.4f} nats per token; 95 % intervals: over seeds "
            f"{_interval(verdict.seeds_low, verdict.seeds_high)}, over examples "
            f"{_interval(verdict.examples_low, verdict.examples_high)}"
        )
    return "\n".join(lines).rstrip()


def _run(one: RunEvaluation) -> list[str]:
    losses = one.losses
    lines = [f"{one.run_id}: {losses.examples} examples, {losses.target_tokens} target tokens"]
    for label, loss in (("base", losses.base_loss), ("adapter", losses.adapter_loss)):
        text = "not finite" if loss is None else f"{loss:.4f}, perplexity {_perplexity(loss)}"
        lines.append(f"  {label:<8} loss {text}")
    if losses.drop is not None:
        interval = _interval(losses.drop_low, losses.drop_high)
        lines.append(f"  drop     {losses.drop:.4f}, 95 % interval {interval}")
    if losses.unseen:
        lines.append(f"  not in these figures: {losses.unseen}")
    if one.tasks is not None and one.base_tasks is not None:
        lines += _tasks(one.base_tasks, one.tasks)
    return lines


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):.3f}" if loss < 700 else "beyond 1e304"


def _tasks(base: TaskScores, tuned: TaskScores) -> list[str]:
    pairs = (
        ("exact match", base.exact_match, tuned.exact_match),
        ("pass@1", base.pass_at_1, tuned.pass_at_1),
    )
    return [
        f"  {label}: base {_score(first)}, adapter {_score(second)}"
        for label, first, second in pairs
        if first is not None and second is not None
    ]


def _score(score: Score) -> str:
    return f"{score.passed} of {score.total}"


def _interval(low: float | None, high: float | None) -> str:
    return "not known" if low is None or high is None else f"[{low:.4f}, {high:.4f}]"
