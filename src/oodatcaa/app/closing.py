"""SPRINT_REPORT.md: what a person opens in the morning, made from records and evidence."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from oodatcaa.app.ledger import Ledger
from oodatcaa.app.plans import read_record
from oodatcaa.app.project import Project
from oodatcaa.domain.board import Board
from oodatcaa.domain.negotiation import sprint_outcome
from oodatcaa.domain.report import Report
from oodatcaa.domain.task import StoryKind
from oodatcaa.errors import OodatcaaError
from oodatcaa.kit.files import write_atomic
from oodatcaa.roles.builder import records
from oodatcaa.training.runs import RunStore
from oodatcaa.views.evaluation import Comparison
from oodatcaa.views.markdown import page, prose
from oodatcaa.views.sprint_report import SprintSummary, StoryAdaptation, sprint_report

SPRINT_REPORT = "SPRINT_REPORT.md"
OUTCOMES = {"done": "complete", "needs_human": "needs a person", "running": "still running"}


def write_sprint_report(project: Project) -> Path:
    """The report of the open sprint as it stands now. Raises RefusedError without a sprint."""
    project.sprint()
    path = project.work / SPRINT_REPORT
    write_atomic(path, sprint_report(summarise_sprint(project)))
    return path


def closed_report(project: Project, board: Board, until: datetime) -> str:
    """The report of a sprint that is closed, from its last board. What can not be read any more
    is said in the report instead of keeping the sprint from being closed."""
    try:
        return sprint_report(summarise_sprint(project, board, until))
    except OodatcaaError as error:
        title = board.sprint.title if board.sprint else "a sprint"
        return page(f"Sprint report: {title}", prose(f"It could not be made: {error}."))


def summarise_sprint(
    project: Project, board: Board | None = None, until: datetime | None = None
) -> SprintSummary:
    """Of the open sprint as it stands, or of `board`, a closed one's last, as it stood `until`."""
    closed = board is not None
    board = board if board is not None else project.board()
    objective = project.objective()
    by_kind = {story.kind: story.id for story in board.stories}

    def story(kind: StoryKind) -> str:
        return by_kind.get(kind, "-")

    training = project.facts.get(story(StoryKind.TRAIN), records.TRAINING, records.TrainingFacts)
    evaluation = project.facts.get(
        story(StoryKind.EVALUATE), records.EVALUATION, records.EvaluationFacts
    )
    made = project.facts.get(
        story(StoryKind.EVALUATE), records.GENERATIONS, records.GenerationFacts
    )
    runs = RunStore(project.models / "runs")
    return SprintSummary(
        board=board,
        outcome=_outcome(board, closed=closed),
        finished_at=until or datetime.now(UTC),
        goal=objective.title,
        acceptance=() if objective.stories else objective.acceptance,
        calls=Ledger(project.work, sprint.number).calls() if (sprint := board.sprint) else (),
        run=runs.find(training.run_id) if training else None,
        evaluation=evaluation.result if evaluation else None,
        evidence=tuple(
            item for entry in board.stories for item in project.evidence.of_story(entry.id)
        ),
        adaptations=_adaptations(project, board),
        comparisons=_comparisons(made),
        plots=() if closed else _plots(project),
        open_first=() if closed else _open_first(project),
        links=() if closed else _links(project, board),
        lessons=_lessons(project, board),
    )


def _outcome(board: Board, *, closed: bool) -> str:
    found = sprint_outcome(board)
    if closed and found == "running":
        return "closed before every story was finished"
    return OUTCOMES.get(found, "unknown")


def _plots(project: Project) -> tuple[tuple[str, str], ...]:
    """What the crew committed beside its documents; the page lies in the work folder."""
    folder = project.root / "docs" / "training" / "plots"
    return tuple(
        (f"loss and memory: {path.stem}", f"../../docs/training/plots/{path.name}")
        for path in sorted(folder.glob("*.png"))
    )


def _links(project: Project, board: Board) -> tuple[tuple[str, str], ...]:
    """Every story's plans and reports, and the other documents of the training."""
    found: list[tuple[str, str]] = []
    for story in board.stories:
        for folder in ("plans", "reports"):
            for path in sorted((project.work / folder / story.id).glob("*.md")):
                label = path.stem.replace(f"{story.id}-", "")
                found.append((f"{story.id}: {label}", f"{folder}/{story.id}/{path.name}"))
    return tuple(found)


def _lessons(project: Project, board: Board) -> tuple[str, ...]:
    """What the roles' reports learned, each lesson once, in the order of the stories."""
    found: dict[str, None] = {}
    for story in board.stories:
        for path in sorted((project.work / "reports" / story.id).glob("*.json")):
            try:
                lines = read_record(path, Report).lessons
            except OodatcaaError as error:
                lines = (str(error),)
            found |= {f"{story.id}: {line}": None for line in lines}
    return tuple(found)


def _adaptations(project: Project, board: Board) -> tuple[StoryAdaptation, ...]:
    found: list[StoryAdaptation] = []
    for story in board.stories:
        for version in range(1, story.plan_version + 1):
            note = project.plans.load(story.id, version).adaptation
            if note is not None:
                found.append(StoryAdaptation(story=story.id, plan_version=version, note=note))
    return tuple(found)


def _comparisons(made: records.GenerationFacts | None) -> tuple[Comparison, ...]:
    if made is None:
        return ()
    base, tuned = made.base.generation, made.tuned.generation
    return (
        Comparison(
            prompt=made.prompt,
            base=base.text,
            tuned=tuned.text,
            base_tokens_per_second=base.tokens_per_second,
            tuned_tokens_per_second=tuned.tokens_per_second,
        ),
    )


def _open_first(project: Project) -> tuple[tuple[str, str], ...]:
    """(label, path) of what exists, relative to the work folder where the report lies."""
    wanted = (
        ("Model card", "../../docs/training/MODEL_CARD.md"),
        ("Evaluation", "../../docs/training/evaluation.md"),
        ("Training report", "../../docs/training/training.md"),
        ("Memory profile", "../../docs/training/memory-profile.md"),
        ("Plan of T001", "plans/T001/AGENT_PLAN.md"),
        ("Log", "AGENT_LOG.md"),
    )
    return tuple((label, path) for label, path in wanted if (project.work / path).exists())
