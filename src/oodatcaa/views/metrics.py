"""A sprint's numbers, for the terminal and as Markdown: the same tables in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from oodatcaa.domain.forecast import Forecast
from oodatcaa.domain.metrics import SprintMetrics
from oodatcaa.views.markdown import (
    display_width,
    facts,
    page,
    prose,
    prose_bullets,
    section,
    table,
)
from oodatcaa.views.units import count, duration, minutes, moment, percent, words

NONE = "none yet"


@dataclass(frozen=True)
class Block:
    """One table with its heading; `note` says where its numbers come from."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    align: str
    note: str = ""


def summary_pairs(found: SprintMetrics) -> tuple[tuple[str, str], ...]:
    """The head of the page: label -> text, raw."""
    leases = found.leases
    stale = f"{leases.expired} of {count(leases.claims, 'claim')}"
    if leases.stale_rate is not None:
        stale += f" ({percent(leases.stale_rate)})"
    pairs = (
        ("sprint", f"{found.sprint}, {found.title}"),
        (
            "time",
            f"{moment(found.began_at)} to {moment(found.until)}, {duration(found.elapsed_seconds)}",
        ),
        ("stories", f"{found.stories_done} of {found.stories_total} integrated"),
        ("subtasks", f"{found.subtasks_done} of {found.subtasks_total} done"),
        ("throughput", _throughput(found)),
        ("adapt rounds", str(found.adapt_rounds)),
        ("stale leases", stale),
        ("actual / estimate", _ratio(found.estimate_ratio, len(found.estimates))),
        ("critical path", _measured_path(found)),
        ("still to go", _remaining(found)),
        ("forecast", forecast_line(found.forecast)),
    )
    return tuple((label, text) for label, text in pairs if text)


def metrics_json(found: SprintMetrics) -> dict[str, object]:
    """The record and the rates that follow from it; null before there is anything to divide by."""
    return {
        **found.model_dump(mode="json"),
        "stories_per_hour": found.per_hour(found.stories_done),
        "subtasks_per_hour": found.per_hour(found.subtasks_done),
        "stale_rate": found.leases.stale_rate,
        "actual_by_estimate": found.estimate_ratio,
    }


def metrics_blocks(found: SprintMetrics) -> tuple[Block, ...]:
    return (_stories(found), *_states(found), _estimates(found))


def metrics_text(found: SprintMetrics) -> str:
    """Plain text, columns lined up."""
    pairs = summary_pairs(found)
    width = max(len(label) for label, _ in pairs)
    parts = ["\n".join(f"{label:>{width}}  {text}" for label, text in pairs)]
    for block in metrics_blocks(found):
        if block.rows:
            parts.append(f"{block.title}\n" + _plain(block))
    if found.forecast.derived:
        how = "\n".join(f"  {line}" for line in found.forecast.derived)
        parts.append(f"how the forecast was derived\n{how}")
    return "\n\n".join(parts)


def metrics_page(found: SprintMetrics) -> str:
    """The same as a Markdown document."""
    return page(f"Sprint {found.sprint} in numbers", *metrics_sections(found))


def metrics_sections(found: SprintMetrics) -> tuple[str, ...]:
    """The page's parts, to be put into another one."""
    head = facts((label.capitalize(), prose(text)) for label, text in summary_pairs(found))
    blocks = [
        section(
            block.title.capitalize(),
            prose(block.note) if block.rows else "",
            table(block.head, [[prose(cell) for cell in row] for row in block.rows], block.align),
        )
        for block in metrics_blocks(found)
    ]
    how = section("How the forecast was derived", prose_bullets(found.forecast.derived))
    return (head, *blocks, how)


def forecast_line(found: Forecast) -> str:
    if found.p50_minutes is None:
        return found.why_not
    parts = (
        ("P50", found.p50_minutes, found.p50_at),
        ("P80", found.p80_minutes, found.p80_at),
        ("P95", found.p95_minutes, found.p95_at),
    )
    return "; ".join(
        f"{name} in {duration(60 * (left or 0.0))} ({moment(at)})" for name, left, at in parts
    )


def _throughput(found: SprintMetrics) -> str:
    stories, subtasks = found.per_hour(found.stories_done), found.per_hour(found.subtasks_done)
    if stories is None or subtasks is None:
        return ""
    return f"{stories:.2f} stories and {subtasks:.2f} subtasks an hour"


def _ratio(value: float | None, amount: int) -> str:
    if value is None:
        return f"{NONE}: no subtask is finished"
    return f"x{value:.3g} (median of {count(amount, 'finished subtask')})"


def _measured_path(found: SprintMetrics) -> str:
    steps = [
        f"{step.story} ({duration((step.finished_at - step.started_at).total_seconds())})"
        for step in found.measured_path
    ]
    return " -> ".join(steps)


def _remaining(found: SprintMetrics) -> str:
    if not found.remaining_path:
        return ""
    return (
        f"{' -> '.join(found.remaining_path)} (about {minutes(found.remaining_minutes)}, estimate)"
    )


def _stories(found: SprintMetrics) -> Block:
    rows = [
        (
            item.story,
            words(item.status),
            duration(item.lead_seconds),
            duration(item.cycle_seconds) if item.cycle_seconds is not None else "not begun",
            duration(item.work_seconds),
            duration(item.waiting_seconds),
            duration(item.blocked_seconds),
            str(item.adapt_rounds),
            minutes(item.estimate_minutes),
            minutes(item.agent_seconds / 60),
            f"x{item.ratio:.3g}" if item.ratio is not None else "open",
        )
        for item in found.stories
    ]
    head = ("story", "status", "lead", "cycle", "work", "waiting", "of it blocked", "adapted",
            "estimate", "agents", "ratio")  # fmt: skip
    note = (
        "Lead: from the start of the sprint; cycle: from the first claim. Work: at least one agent "
        "was at it; waiting: the rest. Agents: all their time together, compared with the estimate."
    )
    return Block("stories", head, rows, "ll" + "r" * 9, note)


def _states(found: SprintMetrics) -> tuple[Block, ...]:
    blocks = []
    for scope, title in (("story", "time of stories in each state"),
                         ("subtask", "time of subtasks in each state")):  # fmt: skip
        rows = [
            (
                words(row.status),
                row.meaning,
                str(row.visits),
                duration(row.total_seconds),
                duration(row.median_seconds),
                duration(row.longest_seconds),
            )
            for row in found.states
            if row.scope == scope
        ]
        head = ("state", "meaning", "stays", "total", "median", "longest")
        blocks.append(Block(title, head, rows, "llrrrr", "Measured by the framework's clock."))
    return tuple(blocks)


def _estimates(found: SprintMetrics) -> Block:
    rows = [
        (
            item.task,
            minutes(item.estimate_minutes),
            duration(60 * item.actual_minutes),
            f"x{item.ratio:.3g}",
            str(item.attempts),
        )
        for item in found.estimates
    ]
    head = ("subtask", "estimate", "actual", "ratio", "attempts")
    note = "Actual: the time that agents held the subtask, all attempts together."
    return Block("estimate against actual", head, rows, "lrrrr", note)


def _plain(block: Block) -> str:
    table_rows = [block.head, *block.rows]
    widths = [
        max(display_width(row[place]) for row in table_rows) for place in range(len(block.head))
    ]
    lines = []
    for row in table_rows:
        cells = []
        for cell, width, mark in zip(row, widths, block.align, strict=True):
            space = " " * (width - display_width(cell))
            cells.append(space + cell if mark == "r" else cell + space)
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)
