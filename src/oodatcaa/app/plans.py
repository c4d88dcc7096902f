"""Plan records and facts on disk: `.oodatcaa/work/plans/` and `.oodatcaa/work/facts/`."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from oodatcaa.domain.base import Record
from oodatcaa.domain.plan import Plan
from oodatcaa.errors import StateError
from oodatcaa.kit.files import write_atomic
from oodatcaa.views.agent_plan import agent_plan
from oodatcaa.views.test_plan import test_plan

R = TypeVar("R", bound=Record)


def read_record(path: Path, kind: type[R]) -> R:
    """Raises StateError naming the file when it is missing or not what it must be."""
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise StateError("record.unreadable", f"{path}: {first}", hint="oodatcaa doctor") from error


class PlanFiles:
    """A plan is proposed under its attempt and becomes plan-vN.json once the queue accepted it.

    So a late planner, whose lease was given to another, can not overwrite an accepted plan.
    """

    def __init__(self, work: Path) -> None:
        self._folder = work / "plans"

    def folder(self, story: str) -> Path:
        return self._folder / story

    def propose(self, plan: Plan, attempt: int) -> Path:
        path = self.folder(plan.story) / f"plan-v{plan.version}.attempt-{attempt}.json"
        write_atomic(path, plan.model_dump_json(indent=2) + "\n")
        return path

    def accept(self, plan: Plan, attempt: int) -> None:
        """Give the accepted proposal its name and write its two views; a reader may have done so
        already (see `load`)."""
        folder = self.folder(plan.story)
        proposal = folder / f"plan-v{plan.version}.attempt-{attempt}.json"
        try:
            self._promote(proposal, plan.story, plan.version)
        except (StateError, FileNotFoundError):
            accepted = folder / f"plan-v{plan.version}.json"
            if not accepted.exists() or read_record(accepted, Plan) != plan:
                raise

    def load(self, story: str, version: int) -> Plan:
        """The accepted plan. Raises StateError when it is missing or unreadable."""
        path = self.folder(story) / f"plan-v{version}.json"
        if not path.exists():
            # The queue accepted a plan and its process died before the rename: finish that now.
            # Attempts are fenced, so the accepted proposal is always the newest one.
            proposals = sorted(
                path.parent.glob(f"plan-v{version}.attempt-*.json"),
                key=lambda found: int(found.stem.rsplit("-", 1)[1]),
            )
            if proposals:
                self._promote(proposals[-1], story, version)
        return read_record(path, Plan)

    def _promote(self, proposal: Path, story: str, version: int) -> None:
        folder = self.folder(story)
        plan = read_record(proposal, Plan)
        write_atomic(folder / "AGENT_PLAN.md", agent_plan(plan))
        write_atomic(folder / "TEST_PLAN.md", test_plan(plan))
        proposal.replace(folder / f"plan-v{version}.json")


class FactFiles:
    """One JSON file per record; the newest attempt's facts replace the older ones."""

    def __init__(self, work: Path) -> None:
        self._folder = work / "facts"
        self._written: dict[Path, str] = {}

    def path(self, story: str, name: str) -> Path:
        return self._folder / story / f"{name}.json"

    def put(self, story: str, name: str, record: Record) -> None:
        text = record.model_dump_json(indent=2) + "\n"
        self._written[self.path(story, name)] = text
        write_atomic(self.path(story, name), text)

    def wrote(self, path: Path) -> bool:
        """Whether the file is there exactly as this object wrote it last."""
        try:
            return path in self._written and path.read_text("utf-8") == self._written[path]
        except (OSError, UnicodeDecodeError):
            return False

    def get(self, story: str, name: str, kind: type[R]) -> R | None:
        path = self.path(story, name)
        return read_record(path, kind) if path.exists() else None
