"""In what order imported plans come: waves of a phase, beside what each plan says it needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from oodatcaa.app.project import Project
from oodatcaa.app.sprints import carried_stories
from oodatcaa.domain.draft import DraftStory
from oodatcaa.domain.task import StoryStatus
from oodatcaa.importers import Imported

Waves = Mapping[tuple[str, str], Mapping[int, Sequence[str]]]
"""(format, phase) -> wave -> keys of its plans."""


def waves_of(
    project: Project,
    before: Mapping[str, DraftStory],
    pairs: Sequence[tuple[Imported, DraftStory]],
) -> Waves:
    """Of what is imported now and what was before, without the cancelled."""
    there = [
        (story.source.format, before[story.id])
        for story in project.board().stories or carried_stories(project)
        if story.source and story.id in before and story.status is not StoryStatus.CANCELLED
    ]
    found: dict[tuple[str, str], dict[int, list[str]]] = {}
    for kind, draft in (*there, *((item.kind.value, draft) for item, draft in pairs)):
        if draft.wave is not None and draft.phase:
            found.setdefault((kind, draft.phase), {}).setdefault(draft.wave, []).append(draft.key)
    return found


def earlier_wave(item: Imported, draft: DraftStory, waves: Waves) -> tuple[str, ...]:
    """The plans of the wave before the draft's own, in its phase: all of them come first."""
    same = waves.get((item.kind.value, draft.phase), {})
    lower = [wave for wave in same if draft.wave is not None and wave < draft.wave]
    return tuple(same[max(lower)]) if lower else ()
