"""What the Integrator keeps in git of a story: plans, reports, facts and evidence summaries."""

from __future__ import annotations

from pathlib import Path

from oodatcaa.app.export import story_records
from oodatcaa.app.work import Claimed
from oodatcaa.domain.evidence import Evidence
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.task import Story
from oodatcaa.kit.files import write_atomic

HISTORY = Path(".oodatcaa") / "history"


def export_records(
    claimed: Claimed, story: Story, target: Path, fresh: tuple[Evidence, ...]
) -> list[str]:
    """Write the story's records below `target`; return the names written."""
    found = story_records(claimed.project, story.id, fresh)
    for name, data in found.items():
        write_atomic(target / name, data)
    return list(found)


def promised_files(plan: Plan) -> tuple[str, ...]:
    return tuple(path for path in plan.deliverables if "/" in path and " " not in path)
