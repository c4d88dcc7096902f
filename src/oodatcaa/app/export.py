"""What of a story is kept in git: plans, reports, facts, and summaries of its evidence."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from oodatcaa.app.plans import read_record
from oodatcaa.app.project import Project
from oodatcaa.domain.evidence import Evidence
from oodatcaa.domain.report import Report
from oodatcaa.errors import OodatcaaError
from oodatcaa.views.report import report as render

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
        f"{label}/{path.name}": _exported(label, path)
        for label, folder, patterns in sources
        for path in sorted({found for pattern in patterns for found in folder.glob(pattern)})
        if ".attempt-" not in path.name
    }


def _exported(label: str, path: Path) -> bytes:
    """The file as it is; a report's page is drawn again, for its links lead elsewhere from here."""
    record = path.with_suffix(".json")
    if label != "reports" or path.suffix != ".md" or not record.is_file():
        return path.read_bytes()
    try:
        report = read_record(record, Report)
    except OodatcaaError:
        return path.read_bytes()  # the page is what is left of it
    return render(report, evidence_dir=f"../{EVIDENCE_FILE}", plan_dir="../plans").encode()


def summarise(evidence: Evidence) -> dict[str, object]:
    """What is kept of one piece of evidence in git: no output, only its hash."""
    kept = evidence.model_dump(mode="json", exclude={"output_path", "output_tail", "gate", "host"})
    return {**kept, "gate": evidence.gate.id, "name": evidence.gate.name}
