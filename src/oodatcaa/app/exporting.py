"""What the Integrator keeps in git of a story: plans, reports, facts and evidence summaries."""

from __future__ import annotations

from pathlib import Path

from oodatcaa.app.claimed import Claimed
from oodatcaa.app.export import EVIDENCE_FILE, story_records
from oodatcaa.domain.evidence import Evidence
from oodatcaa.domain.report import Report
from oodatcaa.domain.task import Role, Story
from oodatcaa.kit.files import write_atomic
from oodatcaa.views.report import report as render

HISTORY = Path(".oodatcaa") / "history"


def export_records(
    claimed: Claimed,
    story: Story,
    target: Path,
    fresh: tuple[Evidence, ...],
    report: Report,
) -> list[str]:
    """Write the story's records below `target`, with the Integrator's own `report`, which is not
    among them before the target moved; return the names written."""
    found = story_records(claimed.project, story.id, fresh)
    name = f"reports/{Role.INTEGRATOR.value}"
    if f"{name}.json" in found:  # of an attempt that did not get here
        name += f"-attempt-{report.attempt}"
    page = render(report, evidence_dir=f"../{EVIDENCE_FILE}", plan_dir="../plans")
    found[f"{name}.json"] = (report.model_dump_json(indent=2) + "\n").encode()
    found[f"{name}.md"] = page.encode()
    for name, data in found.items():
        write_atomic(target / name, data)
    return list(found)
