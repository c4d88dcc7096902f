"""What of an imported queue can go on in a live sprint."""

from __future__ import annotations

from oodatcaa.domain.draft import DraftStep, DraftStory
from oodatcaa.domain.source import Leftover
from oodatcaa.domain.task import Story, StoryStatus, Task, story_of
from oodatcaa.importers.records import Imported

_OVER = (StoryStatus.DONE, StoryStatus.CANCELLED)


def as_drafts(imported: Imported) -> Imported:
    """The same import with its unfinished stories as drafts, to be planned anew.

    The board `imported.board` says what the old process said; a live board wants evidence for
    whatever is done and a plan record for every subtask, which no old queue has. A story keeps its
    id where that is free, its dependencies on other open stories, its open builds as steps, and
    word for word whatever was known of the rest.
    """
    if not imported.stories:
        return imported
    over = [story for story in imported.stories if story.status in _OVER]
    drafts = tuple(_draft(imported, s) for s in imported.stories if s.status not in _OVER)
    return imported.evolve(
        drafts=drafts,
        done=tuple(story.id for story in over),
        past=tuple(_past(imported, story) for story in over),
    )


def _past(imported: Imported, story: Story) -> str:
    """One line on a story that the old process closed."""
    old = {new: name for name, new in imported.renamed.items()}
    parts = imported.board.subtasks_of(story.id)
    facts = [story.status.value]
    facts += [f"called {old[story.id]} there"] if old.get(story.id, story.id) != story.id else []
    facts += [f"commit {story.commit}"] if story.commit else []
    facts += [f"{part.id} {part.status.value}" for part in parts]
    return f"{story.id} {story.title} ({', '.join(facts)})"


def _draft(imported: Imported, story: Story) -> DraftStory:
    old = {new: name for name, new in imported.renamed.items()}
    parts = imported.board.subtasks_of(story.id)
    todo = [part for part in parts if part.kind.value == "build" and part.status.value != "done"]
    todo = [part for part in todo if part.status.value != "cancelled"]
    steps = [
        DraftStep(
            number=number,
            title=part.title,
            action=f"{part.title}\n\n{story.goal}".strip(),
            estimate_minutes=part.estimate_minutes,
        )
        for number, part in enumerate(todo, 1)
    ]
    if not steps:
        steps = [DraftStep(number=1, title=story.title, action=story.goal)]
    needed = dict.fromkeys(story_of(other) for other in story.depends_on)
    return DraftStory(
        key=story.id,
        title=story.title,
        slug=story.slug,
        goal=story.goal or story.title,
        prefer_id=story.id,
        estimate_minutes=story.estimate_minutes,
        depends_on=tuple(other for other in needed if other != story.id),
        steps=tuple(steps),
        leftovers=_leftovers(imported, story, old),
    )


def _leftovers(imported: Imported, story: Story, old: dict[str, str]) -> tuple[Leftover, ...]:
    """The old state of the story and its parts, and its notes."""
    found = []
    tasks: tuple[Task, ...] = (story, *imported.board.subtasks_of(story.id))
    for task in tasks:
        name = old.get(task.id, task.id)
        facts = [f"{task.status.value} in the old queue"]
        facts += [f"it was called {name}"] if name != task.id else []
        facts += [f"commit {task.commit}"] if task.commit else []
        facts += [task.reason] if task.reason else []
        found.append(
            Leftover(what=f"{task.id} {task.title}", place="the file", text="; ".join(facts))
        )
    ids = {task.id for task in tasks}
    found += [
        Leftover(
            what=f"note on {event.subject}",
            place="the file",
            text=f"{event.at:%Y-%m-%d %H:%M} {event.actor}: {event.text}",
        )
        for event in imported.notes
        if event.subject in ids
    ]
    return tuple(found)
