"""What of a story is kept in git: plans, reports, facts, and summaries of its evidence."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from oodatcaa.app.project import Project
from oodatcaa.domain.evidence import Evidence
from oodatcaa.errors import OodatcaaError

EVIDENCE_FILE = "evidence.json"


def story_records(project: Project, story: str, fresh: Iterable[Evidence] = ()) -> dict[str, bytes]:
    """Relative path -> content; `fresh` is evidence that is not stored yet.

    Raises OodatcaaError when a piece of evidence can not be read.
    """
    found = story_files(project, story)
    summary = [summarise(item) for item in (*project.evidence.of_story(story), *fresh)]
    unique = {str(item["id"]): item for item in summary}
    found[EVIDENCE_FILE] = (json.dumps(list(unique.values()), indent=2) + "\n").encode()
    return found


def kept_records(project: Project, story: str) -> dict[str, bytes]:
    """Like `story_records`, but what can not be read is said in its place and stops nothing."""
    try:
        return story_records(project, story)
    except OodatcaaError as error:
        said = json.dumps([{"problem": str(error)}], indent=2) + "\n"
        return {**story_files(project, story), EVIDENCE_FILE: said.encode()}


def story_files(project: Project, story: str) -> dict[str, bytes]:
    sources: tuple[tuple[str, Path, tuple[str, ...]], ...] = (
        ("plans", project.plans.folder(story), ("*.md", "plan-v*[0-9].json")),
        ("reports", project.work / "reports" / story, ("*.md", "*.json")),
        ("facts", project.work / "facts" / story, ("*.json",)),
    )
    return {
        f"{label}/{path.name}": path.read_bytes()
        for label, folder, patterns in sources
        for path in sorted({found for pattern in patterns for found in folder.glob(pattern)})
        if ".attempt-" not in path.name
    }


def summarise(evidence: Evidence) -> dict[str, object]:
    """What is kept of one piece of evidence in git: no output, only its hash."""
    kept = evidence.model_dump(mode="json", exclude={"output_path", "output_tail", "gate", "host"})
    return {**kept, "gate": evidence.gate.id, "name": evidence.gate.name}
