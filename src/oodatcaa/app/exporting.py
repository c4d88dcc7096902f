"""What the Integrator keeps in git of a story: plans, reports, facts and evidence summaries."""

from __future__ import annotations

import json
from pathlib import Path

from oodatcaa.app.work import Claimed
from oodatcaa.domain.evidence import Evidence
from oodatcaa.domain.plan import Plan
from oodatcaa.domain.task import Story
from oodatcaa.kit.files import write_atomic

HISTORY = Path(".oodatcaa") / "history"


def export_records(
    claimed: Claimed, story: Story, target: Path, fresh: tuple[Evidence, ...]
) -> list[str]:
    """Copy plans, reports and facts; summarise the evidence; return the names written."""
    project = claimed.project
    names: list[str] = []
    sources = (
        ("plans", project.plans.folder(story.id), ("*.md", "plan-v*[0-9].json")),
        ("reports", project.work / "reports" / story.id, ("*.md", "*.json")),
        ("facts", project.work / "facts" / story.id, ("*.json",)),
    )
    for label, folder, patterns in sources:
        for path in sorted({found for pattern in patterns for found in folder.glob(pattern)}):
            if ".attempt-" in path.name:
                continue
            name = f"{label}/{path.name}"
            write_atomic(target / name, path.read_bytes())
            names.append(name)
    summary = [summarise(item) for item in (*project.evidence.of_story(story.id), *fresh)]
    unique = {str(item["id"]): item for item in summary}
    write_atomic(target / "evidence.json", json.dumps(list(unique.values()), indent=2) + "\n")
    return [*names, "evidence.json"]


def summarise(evidence: Evidence) -> dict[str, object]:
    """What is kept of one piece of evidence in git: no output, only its hash."""
    kept = evidence.model_dump(mode="json", exclude={"output_path", "output_tail", "gate", "host"})
    return {**kept, "gate": evidence.gate.id, "name": evidence.gate.name}


def promised_files(plan: Plan) -> tuple[str, ...]:
    return tuple(path for path in plan.deliverables if "/" in path and " " not in path)
