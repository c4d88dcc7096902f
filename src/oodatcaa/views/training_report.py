"""training.md: one run, from its parameters to its losses and its memory."""

from __future__ import annotations

from oodatcaa.domain.memory import MemoryEstimate
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.training import DatasetRecord, LossPoint, RunRecord
from oodatcaa.views.cards import continued, memory_table, splits, wall_seconds
from oodatcaa.views.framework import machine_facts
from oodatcaa.views.markdown import bold, code, facts, image, page, prose, section, table
from oodatcaa.views.model_checks import estimate_parts
from oodatcaa.views.plan_parts import model_name, parameters
from oodatcaa.views.units import count, duration, loss, moment, number, short, words

_SHOWN = 12


def training_report(
    plan: Plan,
    run: RunRecord,
    estimate: MemoryEstimate,
    dataset: DatasetRecord,
    *,
    plot: str | None = None,
) -> str:
    """The report as Markdown; `plot` is a path relative to the page."""
    return page(
        f"Training run {run.run_id}",
        facts(
            [
                ("Status", bold(words(run.status.value))),
                ("Story", f"{plan.story} {prose(plan.title)}, plan version {plan.version}"),
                ("Model", code(model_name(run.model))),
                ("Started", moment(run.started_at)),
                ("Finished", f"{moment(run.finished_at)} (took {duration(wall_seconds(run))})"
                 if run.finished_at else None),
                ("Commit", code(short(run.git_sha))
                 + (" with uncommitted changes" if run.git_dirty else "")
                 if run.git_sha else None),
                ("Continues run", continued(run)),
                ("Failure", prose(run.failure.message) if run.failure else None),
            ]
        ),
        section("Losses", _summary(run), image("Loss and memory over the run", plot)
                if plot else "", _losses(run)),
        section("Memory and speed", memory_table(run)),
        estimate_parts(estimate, run.memory_limit_bytes),
        section("Parameters", parameters(run.params)),
        section("Data", facts([("Name", prose(dataset.name)), ("SHA-256", code(dataset.sha256))]),
                splits(dataset)),
        section("Machine", machine_facts(run.machine)),
        section("Where it is", _places(run)),
    )  # fmt: skip


def _summary(run: RunRecord) -> str:
    done = (
        f"{number(run.iterations_done)} of {count(run.params.iters, 'iteration')} "
        f"({count(run.optimizer_steps, 'optimizer step')})."
    )
    if not run.train_losses:
        return done
    first, last = run.train_losses[0], run.train_losses[-1]
    return (
        f"{done} Training loss went from {loss(first.loss)} (iteration {first.iteration}) to "
        f"{loss(last.loss)} (iteration {last.iteration}), in nats per target token; single "
        "iterations are noisy."
    )


def _losses(run: RunRecord) -> str:
    """Both curves at a dozen places at most; metrics.jsonl has every point."""
    valid = {point.iteration: point.loss for point in run.valid_losses}
    train = {point.iteration: point.loss for point in run.train_losses}
    shown = sorted(set(_thin(run.train_losses)) | set(valid))
    rows = [
        (
            number(iteration),
            loss(train[iteration]) if iteration in train else "",
            loss(valid[iteration]) if iteration in valid else "",
        )
        for iteration in shown
    ]
    return table(("Iteration", "Training loss", "Validation loss"), rows, "rrr")


def _thin(points: tuple[LossPoint, ...]) -> list[int]:
    """First, last and evenly spread iterations between them."""
    if len(points) <= _SHOWN:
        return [point.iteration for point in points]
    last = len(points) - 1
    return [points[round(place * last / (_SHOWN - 1))].iteration for place in range(_SHOWN)]


def _places(run: RunRecord) -> str:
    folder = f"models/runs/{run.backend}/{run.run_id}"
    return facts(
        [
            ("Run folder", f"{code(folder + '/')} (not in git)"),
            ("Adapter", f"{code(folder + '/adapters/')}"
             + (f", sha256 {code(short(run.adapter_sha256))}" if run.adapter_sha256 else "")),
            ("Every measured point", code(folder + "/metrics.jsonl")),
        ]
    )  # fmt: skip
