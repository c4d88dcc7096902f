"""What of an imported queue can go on in a live sprint."""

from __future__ import annotations

from datetime import datetime

from oodatcaa.domain.lifecycle import initial_story
from oodatcaa.domain.task import Story, StoryStatus, story_of
from oodatcaa.importers.records import Imported

_OVER = (StoryStatus.DONE, StoryStatus.CANCELLED)


def open_stories(imported: Imported, now: datetime) -> tuple[Story, ...]:
    """The unfinished stories as new ones, ready to be planned on a board of their own.

    The board `imported.board` says what the old process said; a live board wants evidence for
    whatever is done and a plan record for every subtask, which no old queue has. So open work is
    planned anew: a story keeps its id, its dependencies on other open stories, and in its goal
    what was known of its parts.
    """
    left = {story.id for story in imported.stories if story.status not in _OVER}
    return tuple(
        initial_story(
            now,
            id=story.id,
            slug=story.slug,
            kind=story.kind,
            title=story.title,
            goal=_goal(imported, story),
            estimate_minutes=story.estimate_minutes,
            depends_on=_needed(story, left),
        )
        for story in imported.stories
        if story.id in left
    )


def _needed(story: Story, left: set[str]) -> tuple[str, ...]:
    needed = dict.fromkeys(story_of(other) for other in story.depends_on)
    return tuple(other for other in needed if other in left and other != story.id)


def _goal(imported: Imported, story: Story) -> str:
    lines = [story.goal] if story.goal else []
    if story.reason:
        lines.append(f"Imported: {story.reason}")
    for part in imported.board.subtasks_of(story.id):
        at = f", commit {part.commit}" if part.commit else ""
        lines.append(f"- {part.id} {part.title}: {part.status.value} in the old queue{at}")
    return "\n".join(lines)
