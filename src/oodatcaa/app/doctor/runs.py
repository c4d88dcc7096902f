"""Training runs and data: are they still what their records say?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from oodatcaa.app.doctor.finding import Fact, Finding, Severity
from oodatcaa.app.doctor.machine import Looked
from oodatcaa.app.project import Project
from oodatcaa.domain.board import Board
from oodatcaa.domain.task import ArtefactKind
from oodatcaa.domain.training import RunRecord, RunStatus
from oodatcaa.training.datasets import CARD_FILE, DataStore, read_card
from oodatcaa.training.hashes import file_sha256
from oodatcaa.training.protocol import ADAPTERS_DIR, adapter_weights
from oodatcaa.training.runs import LATEST, RunStore


def look_at_runs(project: Project) -> Looked:
    store = RunStore(project.models / "runs")
    listing = store.list()
    found = [
        Finding("run.unreadable", str(store.root), line, "nothing: move the folder away")
        for line in listing.problems
    ]
    for run in store.abandoned():
        meaning = "it says running, but its process has ended"
        repair = "record it as failed, with everything that was measured; checkpoints stay"
        place = str(store.folder(run))
        found.append(Finding("run.dead_owner", place, meaning, repair, action="runs"))
    for run in listing.runs:
        found += judge_adapter(run, store.folder(run))
    found += _latest(store, listing.runs)
    found += judge_artefacts(project.board(), listing.runs)
    return (Fact("runs", f"{len(listing.runs)}"),), tuple(found)


def judge_adapter(run: RunRecord, folder: Path) -> list[Finding]:
    """Reads the adapter of a finished run; its hash must be the one that was recorded."""
    if run.status is not RunStatus.FINISHED or run.adapter_sha256 is None:
        return []
    path = adapter_weights(folder / ADAPTERS_DIR)
    if not path.is_file():
        return [Finding("run.adapter_missing", str(path), f"run {run.run_id} has no adapter")]
    if file_sha256(path) != run.adapter_sha256:
        meaning = f"the adapter of run {run.run_id} is not the one that was trained and tested"
        return [Finding("run.adapter_changed", str(path), meaning)]
    return []


def _latest(store: RunStore, runs: Sequence[RunRecord]) -> list[Finding]:
    found = []
    for backend in sorted({run.backend for run in runs}):
        link = store.root / backend / LATEST
        finished = [r for r in runs if r.backend == backend and r.status is RunStatus.FINISHED]
        wanted = max(finished, key=lambda run: (run.finished_at, run.run_id), default=None)
        if link.is_symlink():
            if wanted is not None and link.readlink().name == wanted.run_id:
                continue
            meaning = f"it names {link.readlink().name}, which is not the newest finished run"
        elif wanted is None:
            continue
        else:
            meaning = "there is a finished run, but no link to the newest one"
        repair = f"point it to {wanted.run_id}" if wanted else "remove the link: no run finished"
        found.append(
            Finding(
                "run.latest_wrong", str(link), meaning, repair, action="latest", subject=backend
            )
        )
    return found


def judge_artefacts(board: Board, runs: Sequence[RunRecord]) -> list[Finding]:
    known = {run.run_id: run for run in runs}
    found = []
    for task in board.subtasks:
        for item in task.artefacts:
            if item.kind is not ArtefactKind.RUN or task.status.value == "cancelled":
                continue
            run = known.get(item.ref)
            if run is None:
                meaning = f"{task.id} made run {item.ref}, which is not there"
                found.append(Finding("run.missing", item.ref, meaning))
            elif item.sha256 and run.adapter_sha256 != item.sha256:
                meaning = f"{task.id} handed in another adapter than the run's record names"
                found.append(Finding("run.record_changed", item.ref, meaning))
    return found


def look_at_data(project: Project) -> Looked:
    store = DataStore(project.models / "data")
    folders = [path for path in sorted(store.root.glob("*")) if (path / CARD_FILE).is_file()]
    found = [finding for path in folders for finding in _data(store, path)]
    return (Fact("data", f"{len(folders)} data sets"),), tuple(found)


def _data(store: DataStore, path: Path) -> Iterator[Finding]:
    repair = f"nothing: mv '{path}' away; the data story builds it again, byte for byte"
    for line in store.problems(str(path)):
        yield Finding("data.changed", str(path), line, repair)
    if not read_card(path).sha256.startswith(path.name):
        meaning = "the folder's name is not the hash that its card names"
        yield Finding("data.renamed", str(path), meaning, repair, Severity.BAD)
