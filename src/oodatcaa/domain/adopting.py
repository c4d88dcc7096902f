"""Taking imported work onto the board: new stories, unchanged ones, and what they wait for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from pydantic import PositiveInt

from oodatcaa.domain.base import NonEmpty, Record
from oodatcaa.domain.board import Board, Decision, Event, EventKind
from oodatcaa.domain.lifecycle import initial_story, move
from oodatcaa.domain.rounds import blocked_reason
from oodatcaa.domain.source import Source
from oodatcaa.domain.task import Story, StoryKind, StoryStatus


class Incoming(Record):
    """One draft as the board sees it; its steps and gates stay in the draft."""

    source: Source
    title: NonEmpty
    slug: NonEmpty
    goal: str
    kind: StoryKind = StoryKind.CUSTOM
    estimate_minutes: PositiveInt
    needs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    prefer_id: str = ""


class Outcome(StrEnum):
    CREATED = "created"
    UNCHANGED = "unchanged"
    UPDATED = "updated"
    KEPT = "kept"
    """The file has another version of a story that was begun: the story stays as it is."""


class Adopted(Record):
    """What became of one draft; `why` is set for a kept one, and for one from another file."""

    key: NonEmpty
    outcome: Outcome
    story: NonEmpty
    why: str = ""


@dataclass
class _Work:
    board: Board
    now: datetime
    ids: dict[tuple[str, str], str]
    needed: set[str] = field(default_factory=set)
    """Stories that some story waits for: only from these can a circle be closed."""
    done: list[Adopted] = field(default_factory=list)


def adopt(
    board: Board,
    now: datetime,
    *,
    incoming: Sequence[Incoming],
    assume_done: frozenset[str],
    past: Sequence[str] = (),
) -> Decision[tuple[Adopted, ...]]:
    """The board with these stories; the same ones a second time change nothing.

    A story is known again by its format and key. Edited since, it replaces the old one as long as
    no plan was made from that; afterwards the story is kept as it is, and a cancelled one comes
    anew under another id. What a story needs is looked up among all
    imported stories; what is not there stays `unsettled` and blocks, unless it is in
    `assume_done`. What is over elsewhere (`past`) is told by the log beside the stories that it
    came with. A circle of needs is cut where it closes, and stays unsettled too.
    """
    drafts = {_name(item.source): item.source.draft_sha256 for item in incoming}
    known = {
        _name(story.source): story.id
        for story in board.stories
        if story.source and not _anew(story, drafts.get(_name(story.source)))
    }
    known |= _same_content(board, incoming)
    needed = {other for story in board.stories for other in story.depends_on}
    work = _Work(board, now, dict(known), needed)
    _give_ids(work, incoming)
    for item in incoming:
        work.done.append(_take(work, item, assume_done))
    _settle_earlier(work, assume_done)
    if work.board == board:
        return Decision(board, tuple(work.done))
    changed = [item for item in work.done if item.outcome in (Outcome.CREATED, Outcome.UPDATED)]
    event = Event(
        kind=EventKind.NOTE,
        at=now,
        actor="importer",
        subject="sprint",
        text=f"imported {len(changed)} of {len(incoming)} stories",
        details=(
            *(f"{item.story} {item.outcome.value}: {item.key}" for item in changed),
            *(" ".join(line.split()) for line in past),
        ),
    )
    return Decision(work.board, tuple(work.done), (event,))


def _same_content(board: Board, incoming: Sequence[Incoming]) -> dict[tuple[str, str], str]:
    """Stories that came another way: with the very same draft, or made here and exported."""
    drafts = {story.source.draft_sha256: story.id for story in board.stories if story.source}
    found = {}
    for item in incoming:
        native = board.story_by_id.get(item.prefer_id)
        if item.source.draft_sha256 in drafts:
            found[_name(item.source)] = drafts[item.source.draft_sha256]
        elif native is not None and native.source is None and native.title == item.title:
            found[_name(item.source)] = native.id
    return found


def _anew(story: Story, draft: str | None) -> bool:
    """Whether a story was cancelled and its plan has been edited since."""
    assert story.source is not None
    cancelled = story.status is StoryStatus.CANCELLED
    return cancelled and draft is not None and draft != story.source.draft_sha256


def _name(source: Source | None) -> tuple[str, str]:
    return (source.format, source.key) if source else ("", "")


def _give_ids(work: _Work, incoming: Sequence[Incoming]) -> None:
    taken = {story.id for story in work.board.stories}
    wanted = {item.prefer_id for item in incoming if item.prefer_id} - taken
    number = 0
    for item in incoming:
        name = _name(item.source)
        if name in work.ids:
            continue
        choice = item.prefer_id
        while not choice or choice in taken:
            number += 1
            choice = f"T{number:03d}"
            choice = "" if choice in wanted else choice
        taken.add(choice)
        work.ids[name] = choice


def _take(work: _Work, item: Incoming, assume: frozenset[str]) -> Adopted:
    name = _name(item.source)
    story_id = work.ids[name]
    old = work.board.story_by_id.get(story_id)
    before = old.source.assumed if old is not None and old.source is not None else ()
    depends, open_keys, assumed = _needs(work, item, story_id, assume | frozenset(before))
    source = item.source.evolve(unsettled=open_keys, assumed=assumed)
    if old is None:
        work.board = work.board.with_task(_new(work, story_id, item, source, depends))
        return Adopted(key=item.source.key, outcome=Outcome.CREATED, story=story_id)
    if old.source is None:
        return Adopted(key=item.source.key, outcome=Outcome.UNCHANGED, story=story_id)
    same = old.source.draft_sha256 == source.draft_sha256
    if same:
        after = _settled(work, old, depends, open_keys, assumed)
        changed = after is not old
        work.board = work.board.with_task(after) if changed else work.board
        outcome = Outcome.UPDATED if changed else Outcome.UNCHANGED
        return Adopted(key=item.source.key, outcome=outcome, story=story_id)
    if old.plan_version or old.status not in _WAITING:
        return Adopted(
            key=item.source.key,
            outcome=Outcome.KEPT,
            story=story_id,
            why=_why_kept(old),
        )
    work.board = work.board.with_task(_new(work, story_id, item, source, depends, old=old))
    moved = f"it came from {old.source.file} before" if old.source.file != source.file else ""
    return Adopted(key=item.source.key, outcome=Outcome.UPDATED, story=story_id, why=moved)


def _why_kept(old: Story) -> str:
    if old.status is StoryStatus.DONE:
        return f"{old.id} is done from an earlier version; give new work a plan of its own"
    return (
        f"{old.id} was begun from an earlier version and is {old.status.value}; to do the new one "
        f"instead: oodatcaa cancel {old.id} --why …, then import again"
    )


_WAITING = (StoryStatus.NEEDS_PLAN, StoryStatus.BLOCKED, StoryStatus.NEEDS_HUMAN)


def _new(
    work: _Work,
    story_id: str,
    item: Incoming,
    source: Source,
    depends: tuple[str, ...],
    old: Story | None = None,
) -> Story:
    story = initial_story(
        work.now,
        id=story_id,
        slug=old.slug if old else item.slug,
        kind=item.kind,
        title=item.title,
        goal=item.goal,
        estimate_minutes=item.estimate_minutes,
        depends_on=depends,
        source=source,
        files=item.files,
        created_at=old.created_at if old else work.now,
        attempt=old.attempt if old else 0,
    )
    return _waiting(work, story)


def _waiting(work: _Work, story: Story) -> Story:
    """In the status that its needs leave it: blocked as long as something is unsettled."""
    held = story.source.held_back if story.source else ""
    if held and story.status is not StoryStatus.BLOCKED:
        return move(story, StoryStatus.BLOCKED, work.now, reason=held)
    if story.status is StoryStatus.BLOCKED:
        return story.evolve(reason=blocked_reason(work.board, story))
    return story


def _settled(
    work: _Work,
    old: Story,
    depends: tuple[str, ...],
    open_keys: tuple[str, ...],
    assumed: tuple[str, ...],
) -> Story:
    """The same story with what has been settled since; nothing that was settled is undone."""
    assert old.source is not None
    left = tuple(key for key in old.source.unsettled if key in open_keys)
    gone = {story.id for story in work.board.stories if story.status is StoryStatus.CANCELLED}
    added = tuple(item for item in depends if item not in old.depends_on and item not in gone)
    begun = old.plan_version > 0 or old.status not in _WAITING
    if left == old.source.unsettled and (begun or not added):
        return old
    source = old.source.evolve(
        unsettled=left, assumed=tuple(dict.fromkeys([*old.source.assumed, *assumed]))
    )
    after = old.evolve(source=source, depends_on=(*old.depends_on, *added))
    return _waiting(work, after) if after.status is StoryStatus.BLOCKED else after


def _needs(
    work: _Work, item: Incoming, story_id: str, assume: frozenset[str]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """(ids of stories, keys that are nowhere, keys that a person declared done)"""
    depends: list[str] = []
    unsettled: list[str] = []
    assumed: list[str] = []
    for key in dict.fromkeys(item.needs):
        other = work.ids.get((item.source.format, key))
        if key in assume:
            assumed.append(key)
        elif other is None or other == story_id or _closes_a_circle(work, other, story_id):
            unsettled.append(key)
        else:
            depends.append(other)
    work.needed.update(depends)
    return tuple(dict.fromkeys(depends)), tuple(unsettled), tuple(assumed)


def _closes_a_circle(work: _Work, other: str, story_id: str) -> bool:
    return story_id in work.needed and _reaches(work.board, other, story_id)


def _reaches(board: Board, start: str, goal: str) -> bool:
    """Whether `start` waits for `goal` already: another edge would close a circle."""
    seen: set[str] = set()
    front = [start]
    while front:
        name = front.pop()
        if name in seen:
            continue
        seen.add(name)  # also one that is still to come in this import
        story = board.story_by_id.get(name)
        front += story.depends_on if story is not None else ()
    return goal in seen and goal != start


def _settle_earlier(work: _Work, assume: frozenset[str]) -> None:
    """What earlier imports waited for may have come with this one."""
    for story in work.board.stories:
        if story.source is None or not story.source.unsettled:
            continue
        there = {
            key: work.ids[(story.source.format, key)]
            for key in story.source.unsettled
            if (story.source.format, key) in work.ids
        }
        found = {
            key: other
            for key, other in there.items()
            if other != story.id and not _closes_a_circle(work, other, story.id)
        }
        work.needed.update(found.values())
        settled = {*found, *(key for key in story.source.unsettled if key in assume)}
        left = tuple(key for key in story.source.unsettled if key not in settled)
        if left != story.source.unsettled:
            assumed = tuple(key for key in settled if key in assume)
            after = _settled(work, story, tuple(found.values()), left, assumed)
            work.board = work.board.with_task(after)
