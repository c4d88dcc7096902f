"""The report of a finished sprint: what a person reads in the morning, the result first."""

from __future__ import annotations

from pydantic import Field

from oodatcaa.domain.agents import Call
from oodatcaa.domain.base import NonEmpty, Record, Utc
from oodatcaa.domain.board import Board
from oodatcaa.domain.budgets import total
from oodatcaa.domain.evidence import ACCEPTABLE, Bound, Evidence, Verdict
from oodatcaa.domain.plan import AdaptationNote
from oodatcaa.domain.task import Story
from oodatcaa.domain.training import EvalResult, RunRecord
from oodatcaa.views.cards import wall_seconds
from oodatcaa.views.evaluation import Comparison, reading, side_by_side
from oodatcaa.views.framework import machine_facts
from oodatcaa.views.markdown import (
    bold,
    bullets,
    code,
    facts,
    image,
    link,
    page,
    prose,
    prose_bullets,
    section,
    stack,
    stop,
    table,
)
from oodatcaa.views.model_checks import against_limit
from oodatcaa.views.plan_parts import model_name
from oodatcaa.views.report import evidence_counts
from oodatcaa.views.units import (
    NOT_MEASURED,
    count,
    duration,
    interval,
    loss,
    memory,
    moment,
    number,
    percent,
    rate,
    short,
    words,
)


class StoryAdaptation(Record):
    """One adaptation of one story, as its plan version recorded it."""

    story: NonEmpty
    plan_version: int
    note: AdaptationNote


class SprintSummary(Record):
    """Everything that the sprint report shows. Paths are relative to where the page will lie."""

    board: Board
    outcome: NonEmpty = Field(description="complete, needs a person, cancelled …")
    finished_at: Utc
    goal: str = ""
    acceptance: tuple[Bound, ...] = ()
    run: RunRecord | None = None
    evaluation: EvalResult | None = None
    evidence: tuple[Evidence, ...] = ()
    adaptations: tuple[StoryAdaptation, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    plots: tuple[tuple[str, str], ...] = Field(default=(), description="(what it shows, path)")
    open_first: tuple[tuple[str, str], ...] = Field(default=(), description="(label, path)")
    links: tuple[tuple[str, str], ...] = Field(default=(), description="(label, path)")
    lessons: tuple[str, ...] = Field(default=(), description="derived from events")
    calls: tuple[Call, ...] = Field(default=(), description="of external agents")


def sprint_report(summary: SprintSummary) -> str:
    """The report as Markdown. Without a sprint on the board it says so."""
    sprint = summary.board.sprint
    if sprint is None:
        return page("Sprint report", "There is no sprint. Next: `oodatcaa sprint new`.")
    took = (summary.finished_at - sprint.created_at).total_seconds()
    return page(
        f"Sprint {sprint.number} report: {sprint.title}",
        facts(
            [
                ("Outcome", bold(summary.outcome)),
                ("Objective", prose(sprint.objective_id)),
                ("Time", f"{moment(sprint.created_at)} to {moment(summary.finished_at)}, "
                 f"{duration(took)}"),
                ("Target branch", code(sprint.target_branch)),
            ]
        ),
        _headline(summary),
        section("Open first", _links(summary.open_first)),
        section("Objective", prose(summary.goal), _acceptance(summary)),
        section("Result", _figures(summary, took), *_plots(summary)),
        side_by_side(summary.comparisons),
        section("Stories", _stories(summary.board), _open_stories(summary.board)),
        _adaptations(summary),
        _agents(summary.calls),
        section("Evidence", _evidence(summary.evidence)),
        section("Machine", machine_facts(summary.run.machine if summary.run else None)),
        section("Lessons learned", prose_bullets(summary.lessons)),
        section("Everything else", _links(summary.links)),
    )  # fmt: skip


def _headline(summary: SprintSummary) -> str:
    """The result in two sentences, or nothing when there is none."""
    found, run = summary.evaluation, summary.run
    parts = []
    if found and found.base_loss is not None and found.adapter_loss is not None:
        parts.append(
            f"Test loss went from {loss(found.base_loss)} to {loss(found.adapter_loss)} nats per "
            f"target token; {reading(found)}"
        )
    if run and run.peak_memory_bytes is not None:
        parts.append(
            f"Training peaked at {against_limit(run.peak_memory_bytes, run.memory_limit_bytes)}."
        )
    return " ".join(parts)


def _links(links: tuple[tuple[str, str], ...]) -> str:
    return bullets(link(label, target) for label, target in links)


def _plots(summary: SprintSummary) -> tuple[str, ...]:
    return tuple(image(alt, target) for alt, target in summary.plots)


def _acceptance(summary: SprintSummary) -> str:
    """The objective's criteria, each with what the newest evidence says about it."""
    rows = []
    for bound in summary.acceptance:
        found = [e for e in summary.evidence if e.gate.bound and _same(e.gate.bound, bound)]
        newest = max(found, key=lambda item: item.started_at, default=None)
        rows.append(
            (
                code(str(bound)),
                "yes" if bound.critical else "no",
                words(newest.verdict.value) if newest else words(Verdict.NOT_RUN.value),
                prose(newest.detail) if newest else "no evidence",
            )
        )
    return table(("Criterion", "Critical", "Verdict", "Seen"), rows)


def _same(one: Bound, other: Bound) -> bool:
    return (one.metric, one.op, one.value) == (other.metric, other.op, other.value)


def _figures(summary: SprintSummary, took: float) -> str:
    found, run = summary.evaluation, summary.run
    rows: list[tuple[str, str, str]] = []
    if found is not None:
        over = f"{count(found.examples, 'example')} of the {found.split} split"
        over += f"; not in it: {found.unseen}" if found.unseen else ""
        rows += [
            ("test loss, base model", loss(found.base_loss), f"measured, {over}"),
            ("test loss, adapter", loss(found.adapter_loss), f"measured, {over}"),
            ("drop", loss(found.drop),
             f"95 % interval {interval(found.drop_low, found.drop_high)}, paired bootstrap"),
        ]  # fmt: skip
    if run is not None:
        rows += _run_figures(run)
    rows.append(("sprint, wall time", duration(took), "measured, framework's clock"))
    return table(("Figure", "Value", "Source"), rows, "lrl")


def _run_figures(run: RunRecord) -> list[tuple[str, str, str]]:
    peak, predicted = run.peak_memory_bytes, run.estimated_peak_bytes
    rows = [
        ("peak memory, predicted", memory(predicted), "estimate, made before the run"),
        ("peak memory, measured", memory(peak), "process tree and MLX's own peak"),
        ("memory limit", memory(run.memory_limit_bytes), "objective"),
    ]
    if peak is not None and predicted:
        rows.insert(2, ("measured / predicted", percent(peak / predicted), "derived"))
    return [
        *rows,
        ("speed", rate(run.tokens_per_second), "measured, trained target tokens"),
        ("iterations", number(run.iterations_done),
         f"micro-steps, {count(run.optimizer_steps, 'optimizer step')}"),
        ("training, wall time", duration(wall_seconds(run)), f"run {run.run_id}"),
        ("model", code(model_name(run.model)),
         f"rank {run.lora_rank}, alpha {number(run.lora_alpha)}, "
         f"scale {number(run.params.scale)}"),
    ]  # fmt: skip


def _stories(board: Board) -> str:
    rows = [
        (story.id, prose(story.title), words(story.status.value),
         code(short(story.integration.merge_commit)) if story.integration else "none",
         code(story.integration.tag) if story.integration else "none",
         str(story.plan_version), str(story.adapt_round))
        for story in board.stories
    ]  # fmt: skip
    head = ("Story", "Title", "Status", "Merge commit", "Tag", "Plan version", "Adaptations")
    return table(head, rows, "lllllrr")


def _open_stories(board: Board) -> str:
    return bullets(
        f"{story.id}: {words(story.status.value)}. {stop(_why(story))}"
        for story in board.stories
        if story.status.value not in ("done", "cancelled")
    )


def _why(story: Story) -> str:
    if story.lease is not None:
        return f"{story.lease.owner} works on it"
    failed = story.failure.summary if story.failure else ""
    return story.reason or failed or "Its subtasks are in work or wait"


def _adaptations(summary: SprintSummary) -> str:
    rows = [
        (item.story, str(item.note.round), str(item.plan_version), prose(item.note.trigger),
         prose("; ".join(item.note.rungs)), memory_or_none(item.note.before_bytes),
         memory_or_none(item.note.after_bytes))
        for item in summary.adaptations
    ]  # fmt: skip
    head = ("Story", "Round", "Plan version", "Why", "Change", "Before", "After (estimate)")
    return section("Adaptations", table(head, rows, "lrrllrr"))


def memory_or_none(amount: int | None) -> str:
    return "not about memory" if amount is None else memory(amount)


def _evidence(evidence: tuple[Evidence, ...]) -> str:
    if not evidence:
        return ""
    stories = sorted({item.story for item in evidence})
    rows = []
    for story in stories:
        own = [item for item in evidence if item.story == story]
        tally = [str(sum(item.verdict is verdict for item in own)) for verdict in Verdict]
        spent = sum(item.duration_seconds for item in own)
        rows.append((story, *tally, duration(spent)))
    head = ("Story", *(words(verdict.value) for verdict in Verdict), "Time in gates")
    problems = [
        f"{item.story} {item.gate.id} {prose(item.gate.name)}: {words(item.verdict.value)}, "
        f"{prose(item.detail)}"
        for item in evidence
        if item.verdict not in ACCEPTABLE
    ]
    note = "Gates that did not pass, at whatever attempt:" if problems else ""
    return stack(
        f"{evidence_counts(evidence)} Every attempt counts here, also those that were adapted.",
        table(head, rows, "l" + "r" * (len(head) - 1)),
        note,
        bullets(problems),
    )


def run_line(run: RunRecord) -> str:
    """One line about a run for lists: `2026-… finished, 2.41 GB peak, 125.0 tokens/s`."""
    peak = memory(run.peak_memory_bytes) if run.peak_memory_bytes is not None else NOT_MEASURED
    return f"{run.run_id} {run.status.value}, {peak} peak, {rate(run.tokens_per_second)}"


def _agents(calls: tuple[Call, ...]) -> str:
    """What external agents used, as they said themselves; nothing when none worked here."""
    if not calls:
        return ""
    names = sorted({call.definition for call in calls})
    rows = []
    for name in names:
        own = tuple(call for call in calls if call.definition == name)
        failed = sum(1 for call in own if call.ending is None or call.ending.value != "finished")
        rows.append((code(name), code(own[-1].runner), str(failed), prose(total(own).describe())))
    rows.append((bold("all"), "", "", prose(total(calls).describe())))
    return section(
        "External agents",
        table(("Agent", "Runner", "Calls not finished", "Used, as the agent reported it"), rows),
    )
