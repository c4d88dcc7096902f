"""RETROSPECTIVE.md: what a closed sprint reached, what stood in its way, and what to learn."""

from __future__ import annotations

from oodatcaa.domain.board import Board
from oodatcaa.domain.metrics import SprintMetrics
from oodatcaa.domain.retrospective import Retrospective
from oodatcaa.domain.task import Story
from oodatcaa.views.markdown import (
    bullets,
    code,
    facts,
    link,
    page,
    prose,
    prose_bullets,
    section,
    table,
)
from oodatcaa.views.metrics import metrics_sections
from oodatcaa.views.units import duration, moment, percent, short, words

SOURCE = (
    "Everything on this page is derived from the sprint's history; nobody wrote it from memory."
)
NOTHING = "Nothing: every story is finished."


def retrospective(
    board: Board,
    found: SprintMetrics,
    seen: Retrospective,
    links: tuple[tuple[str, str], ...] = (),
) -> str:
    """The page as Markdown; `links` are (label, path from where the page will lie)."""
    sprint = board.sprint
    target = code(sprint.target_branch) if sprint else ""
    head = facts(
        [
            ("Objective", prose(sprint.objective_id) if sprint else ""),
            ("Outcome", f"{found.stories_done} of {found.stories_total} stories integrated into "
             f"{target}"),
            ("Time", f"{moment(found.began_at)} to {moment(found.until)}, "
             f"{duration(found.elapsed_seconds)}"),
        ]
    )  # fmt: skip
    return page(
        f"Sprint {found.sprint} retrospective: {found.title}",
        SOURCE,
        head,
        section("What was reached", _reached(board, found)),
        section("What went well", prose_bullets(seen.went_well)),
        section("Challenges", _setbacks(seen) or "Nothing went wrong that the history knows of."),
        section(
            "Lessons",
            prose_bullets(seen.lessons) or "The numbers teach nothing that was not planned.",
        ),
        section("What moves on", prose_bullets(seen.moves_on) or NOTHING),
        section("Numbers", *_deeper(metrics_sections(found))),
        section("Open", bullets(link(label, path) for label, path in links)),
    )


def _deeper(parts: tuple[str, ...]) -> tuple[str, ...]:
    """The same sections one level down."""
    return tuple(f"#{part}" if part.startswith("## ") else part for part in parts)


def _reached(board: Board, found: SprintMetrics) -> str:
    times = {item.story: item for item in found.stories}
    rows = [
        (
            story.id,
            prose(story.title),
            words(story.status.value) if story.id in times else "done in an earlier sprint",
            _where(story),
            duration(times[story.id].lead_seconds) if story.id in times else "earlier",
            _share(times[story.id].work_seconds, times[story.id].lead_seconds)
            if story.id in times
            else "earlier",
        )
        for story in board.stories
    ]
    head = ("Story", "Title", "Status", "Merged", "Lead time", "Worked on")
    return table(head, rows, "llllrr")


def _share(part: float, whole: float) -> str:
    return percent(part / whole) if whole else percent(0)


def _where(story: Story) -> str:
    if story.integration is None:
        return "not merged"
    return f"{code(short(story.integration.merge_commit))}, tag {code(story.integration.tag)}"


def _setbacks(seen: Retrospective) -> str:
    rows = [
        (
            moment(item.at),
            item.subject,
            prose(item.what),
            prose(item.then),
            duration(60 * item.minutes) if item.minutes is not None else "never",
        )
        for item in seen.setbacks
    ]
    return table(("When", "Task", "What happened", "What came of it", "After"), rows, "llllr")
